"""`panthalassa generate`: text on stdout and nothing else, results by line, mistakes in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import flip
from click.testing import Result
from llama import save_llama
from s3 import BUCKET, Server
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import open_model
from panthalassa.finetune.chat import encode_question
from panthalassa.model.generate import generate_batch
from panthalassa.model.sampling import Sampling
from panthalassa.model.text import continue_texts
from panthalassa.storage import open_storage

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `model`, and the run `run` that was imported from it; it has strong opinions."""
    place = tmp_path_factory.mktemp("models")
    save_llama(place / "model", num_key_value_heads=2)
    tokenizer = Tokenizer.train(["the sea, the sea and the land", "θάλασσα"] * 3, 320)
    (place / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    import_model(open_storage(str(place / "model")), open_storage(str(place / "run")), print)
    return place


@pytest.fixture
def generate(models: Path) -> Run:
    def run(*arguments: str, model: str = "model", stdin: str | None = None) -> Result:
        command = ["generate", str(models / model), *arguments]
        return CliRunner().invoke(app, command, input=stdin)

    return run


def text(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout.removesuffix("\n")


def message(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("panthalassa: ")
    return line


def test_a_prompt_is_continued_in_the_same_way_wherever_it_comes_from(generate: Run) -> None:
    first = text(generate("the sea", "--max-tokens", "30"))
    assert len(first) > 20
    assert text(generate("the sea", "--max-tokens", "30")) == first
    assert text(generate("--max-tokens", "30", stdin="the sea\n")) == first
    assert text(generate("the sea", "--max-tokens", "30", model="run")) == first
    assert text(generate("the sea", "--max-tokens", "30", "--seed", "1")) != first


def test_options_change_what_is_said(generate: Run) -> None:
    options = ("the sea", "--max-tokens", "30", "--temperature")
    greedy = text(generate(*options, "0"))
    assert text(generate(*options, "3", "--top-k", "1")) == greedy
    assert text(generate(*options, "3", "--top-p", "1e-9")) == greedy
    assert text(generate(*options, "3")) != greedy
    assert text(generate(*options, "0", "--repetition-penalty", "5")) != greedy
    stop = greedy[5:8]
    assert text(generate(*options, "0", "--stop", stop)) == greedy.partition(stop)[0]


def test_a_file_is_answered_line_by_line(generate: Run, tmp_path: Path) -> None:
    prompts = ["the sea", "θάλασσα and", '"quoted" \u2028 text']
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\r\n\n")
    lines = [{"id": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    options = ("--max-tokens", "20", "--file")
    found = [
        json.loads(line) for line in text(generate(*options, f"{tmp_path}/prompts.txt")).split("\n")
    ]
    assert [line["prompt"] for line in found] == prompts
    for line in found:
        assert text(generate(line["prompt"], "--max-tokens", "20")) == line["continuation"]
    out = tmp_path / "out" / "results.jsonl"
    told = text(generate(*options, f"{tmp_path}/prompts.jsonl", "--out", str(out)))
    assert told == f"3 continuations in {out}"
    assert [json.loads(line) for line in out.read_text().split("\n")[:-1]] == [
        {"id": number, **line} for number, line in enumerate(found)
    ]


def test_a_chat_is_answered_in_the_same_way_wherever_it_comes_from(
    generate: Run, tmp_path: Path
) -> None:
    options = ("--max-tokens", "20", "--temperature", "0")
    answer = text(generate("the sea", "--chat", *options))
    told = text(generate("the sea", "--chat", "--system", "the land", *options))
    plain = text(generate("the sea", *options))
    assert len({answer, told, plain}) == 3
    user = {"role": "user", "content": "the sea"}
    lines = [
        {"messages": [user]},
        {"messages": [{"role": "system", "content": "the land"}, user], "id": None},
        {"prompt": "the sea"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def found(*more: str) -> list[object]:
        result = text(generate("--file", str(path), *options, *more))
        return [json.loads(line) for line in result.split("\n")]

    continued = zip(lines, (answer, told, plain), strict=True)
    assert found() == [{**line, "continuation": said} for line, said in continued]
    continued = zip(lines, (answer, told, answer), strict=True)
    assert found("--chat") == [{**line, "continuation": said} for line, said in continued]


def test_an_answer_ends_where_the_turn_does(models: Path) -> None:
    """The model is made to say `<|im_end|>` as its third token."""
    opened = open_model(open_storage(str(models / "model")), torch.device("cpu"), torch.float32)
    ids = encode_question(opened.tokenizer, "the sea")
    [free] = generate_batch(opened.model, [ids], 8, Sampling(0.0))
    ended = free.index(third := free[2])
    weight, rows = opened.model.head.output.weight, [third, Tokenizer.turn_end]
    with torch.no_grad():
        weight[rows] = weight[rows[::-1]].clone()
    [found] = continue_texts(opened.model, opened.tokenizer, [ids], 8, Sampling(0.0))
    assert found == opened.tokenizer.decode(free[:ended])


def test_model_and_files_can_be_in_object_storage(
    models: Path, generate: Run, server: Server, s3: str
) -> None:
    shutil.copytree(models / "run", server.folder / BUCKET / "run")
    place = f"s3://{BUCKET}"
    open_storage(place).write("prompts.txt", b"the sea")
    options = ("--max-tokens", "20")
    command = ["generate", f"{place}/run", "--file", f"{place}/prompts.txt", *options]
    result = CliRunner().invoke(app, [*command, "--out", f"{place}/results.jsonl"])
    assert result.exit_code == 0, result.output
    (line,) = open_storage(place).read("results.jsonl").decode().splitlines()
    assert json.loads(line)["continuation"] == text(generate("the sea", *options))


def test_texts_beyond_those_of_training_are_allowed_and_told(generate: Run) -> None:
    result = generate("the sea", "--max-tokens", "200")
    assert result.exit_code == 0
    assert "was trained on texts of up to 128" in result.stderr
    assert len(result.stdout) > 150


def test_a_limit_without_end_takes_no_memory(generate: Run) -> None:
    greedy = ("the sea", "--temperature", "0")
    start = generate(*greedy, "--max-tokens", "8").stdout[:3]
    result = generate(*greedy, "--max-tokens", "1000000000000", "--stop", start)
    assert (result.exit_code, result.stdout) == (0, "\n")


def test_results_are_kept_round_by_round(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panthalassa.cli_generate.ROUND", 1)
    (tmp_path / "prompts.txt").write_text("\ufeffthe sea\nthe land\n", encoding="utf-8")
    out, rounds = tmp_path / "out.jsonl", []

    def interrupted(*arguments: object, **options: object) -> list[str]:
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return ["said"]

    command = ("--file", f"{tmp_path}/prompts.txt", "--out", str(out))
    with monkeypatch.context() as patched:
        patched.setattr("panthalassa.model.text.continue_texts", interrupted)
        assert generate(*command).exit_code == 130
    assert json.loads(out.read_text()) == {"prompt": "the sea", "continuation": "said"}
    assert "is there already" in message(generate(*command))


def test_the_place_of_results_is_tested_before_the_model_is_opened(
    generate: Run, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the sea")
    command = ("--file", str(prompts), "--out")
    assert "is there already" in message(generate(*command, str(prompts), model="nothing"))
    assert prompts.read_text() == "the sea"
    below = f"{prompts}/out.jsonl"
    assert "can not be written" in message(generate(*command, below, model="nothing"))
    assert "is no file" in message(generate(*command, f"{tmp_path}/", model="nothing"))
    out = tmp_path / "out.jsonl"
    assert "expected a run" in message(generate(*command, str(out), model="nothing"))
    assert not out.exists()


def test_mistakes_are_named_in_one_line(generate: Run, models: Path, tmp_path: Path) -> None:
    assert "the prompt is empty" in message(generate(""))
    assert "the prompt is empty" in message(generate(stdin=""))
    assert "give one of them" in message(generate("the sea", "--file", "x"))
    assert "--out is for the results of --file" in message(generate("the sea", "--out", "x"))
    assert "--system is for chats" in message(generate("the sea", "--system", "x"))
    assert "'the \\udcff' is no UTF-8" in message(generate("the \udcff"))
    assert "is no UTF-8" in message(generate("the sea", "--stop", "\udcff"))
    assert "is no UTF-8" in message(generate("--file", "\udcff"))
    assert "temperature=inf: expected" in message(generate("the sea", "--temperature", "inf"))
    assert "top_p=0.0: expected" in message(generate("the sea", "--top-p", "0"))
    assert "is not there: expected a run" in message(generate("x", model="nothing"))
    path = tmp_path / "prompts.jsonl"
    assert "there is no such file of prompts" in message(generate("--file", str(path)))
    for content, told in (
        (b"\n", "holds no prompt"),
        (b'{"prompt": "a"}\n\n{"prompt": "b"}', "line 2 is empty"),
        (b'{"prompt": "a"}\n{"prompt": 7}', "line 2: prompt: Input should be a valid string"),
        (b'{"prompt": ""}', "line 1: the prompt is empty"),
        (b"[1]", "line 1: Input should be an object"),
        (b"{", 'line 1: Invalid JSON: EOF while parsing an object at line 1 column 1; expected {"'),
        (b"\xff", "is no UTF-8"),
        (b'{"text": "a"}', "line 1: there must be either a prompt or messages; expected"),
        (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "must be either"),
        (b'{"messages": []}', "line 1: messages: Tuple should have at least 1 item"),
        (
            b'{"messages": [{"role": "cat", "content": "a"}]}',
            "line 1: messages.0.role: Input should",
        ),
        (
            b'{"messages": [{"role": "user", "content": 7}]}',
            "line 1: messages.0.content: Input should",
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}]}',
            "the last of the messages must be",
        ),
    ):
        path.write_bytes(content)
        assert told in message(generate("--file", str(path)))
    shutil.copytree(models / "run", tmp_path / "run")
    flip(0.5)(tmp_path / "run" / "step-00000000" / "__0_0.distcp")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "run"), "the sea"])
    assert result.exit_code == 1
    assert "is corrupt: SHA-256 is" in result.stderr


def test_text_is_there_while_more_is_drawn_and_ctrl_c_ends_it(models: Path) -> None:
    command = [sys.executable, "-m", "panthalassa.cli", "generate", str(models / "model")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "the sea", "--max-tokens", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(20)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first) == 20
    assert (first + rest).decode().endswith("\n")
    assert b"Traceback" not in errors
