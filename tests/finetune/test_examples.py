"""What of a record is the prompt and what the answer, and which records are refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from panthalassa.corpus.documents import Problem, SourceFile
from panthalassa.corpus.manifest import Objective
from panthalassa.finetune.chat import Message
from panthalassa.finetune.examples import Example, read_examples

USER, OTHER = {"role": "user", "content": "q"}, {"role": "user", "content": "another"}
SYSTEM = {"role": "system", "content": "s"}
SHOT = {"role": "assistant", "content": "shot"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def read(folder: Path, record: dict[str, Any], objective: Objective) -> Example | Problem:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(record) + "\n")
    file = SourceFile(str(folder), path.name, path.stat().st_size, "one", folder.name)
    [found] = read_examples(file, objective)
    return found


def told(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        ({"prompt": "q", "answer": "good"}, [USER], [GOOD]),
        ({"prompt": [USER, SHOT, USER], "answer": "good"}, [USER, SHOT, USER], [GOOD]),
        ({"system": "s", "prompt": "q", "response": "good"}, [SYSTEM, USER], [GOOD]),
        ({"messages": [USER, GOOD]}, [USER], [GOOD]),
        ({"messages": [SYSTEM, USER, SHOT, USER, GOOD, USER]}, [SYSTEM, USER], [SHOT, USER, GOOD]),
    ],
)
def test_what_is_asked_is_the_prompt_and_only_the_rest_is_learned(
    tmp_path: Path, record: Any, prompt: Any, answer: Any
) -> None:
    found = read(tmp_path, record, "sft")
    assert isinstance(found, Example)
    assert [told(found.prompt), *map(told, found.answers)] == [prompt, answer]


@pytest.mark.parametrize(
    ("asked", "before"),
    [
        ("q", []),
        ([USER], [USER]),
        ("q", [SYSTEM, USER]),
        (None, [USER]),
    ],
)
def test_answers_of_a_pair_may_hold_their_prompt_and_its_system_and_nothing_is_there_twice(
    tmp_path: Path, asked: Any, before: Any
) -> None:
    record = {"system": "s"} | ({"prompt": asked} if asked else {})
    record |= {"chosen": [*before, GOOD], "rejected": [*before, BAD]}
    found = read(tmp_path, record, "dpo")
    assert isinstance(found, Example)
    assert [told(found.prompt), *map(told, found.answers)] == [[SYSTEM, USER], [GOOD], [BAD]]


@pytest.mark.parametrize(
    ("objective", "record", "reason"),
    [
        (
            "sft",
            {"messages": [USER, GOOD], "prompt": "q", "answer": "a"},
            "expected `messages`, or",
        ),
        ("sft", {"prompt": "q", "answer": "a", "response": "a"}, "expected `messages`, or"),
        (
            "sft",
            {"prompt": "q", "answer": "a", "image": "x.png"},
            "`image` is 'x.png': name images",
        ),
        ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b", "image": "x"}, "as `images`"),
        ("sft", {"prompt": "q"}, "no answer"),
        ("sft", {"prompt": [USER, GOOD]}, "no answer"),
        ("sft", {"prompt": "q", "answer": [USER]}, "no answer"),
        ("sft", {"messages": [USER]}, "no answer"),
        ("sft", {"messages": [USER, GOOD | {"weight": 0}]}, "Extra inputs are not permitted"),
        ("sft", {"messages": [USER, GOOD | {"tool_calls": []}]}, "Extra inputs"),
        ("dpo", {"prompt": "q", "chosen": [OTHER, GOOD], "rejected": "bad"}, "another prompt"),
        (
            "dpo",
            {"prompt": "q", "chosen": [SYSTEM, USER, GOOD], "rejected": "bad"},
            "another prompt",
        ),
        ("dpo", {"prompt": "x", "chosen": "a", "rejected": "a "}, "are the same"),
        ("dpo", {"prompt": "x", "chosen": "a"}, "expected `prompt`, `chosen` and `rejected`"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "there is no `prompt`"),
        (
            "dpo",
            {"prompt": "x", "chosen": "a", "rejected": ""},
            "a message of the assistant is empty",
        ),
        ("dpo", {"prompt": "x", "chosen": "a", "rejected": [OTHER]}, "must end with"),
        (
            "dpo",
            {"prompt": 3, "chosen": "a", "rejected": "b"},
            "`prompt` is 3: expected a text",
        ),
    ],
)
def test_records_that_say_two_things_or_nothing_are_problems(
    tmp_path: Path, objective: Objective, record: Any, reason: str
) -> None:
    found = read(tmp_path, record, objective)
    assert isinstance(found, Problem)
    assert reason in found.reason
