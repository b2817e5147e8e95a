"""Programs from descriptions: pass@k of HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021).

The files are the published ones, unpacked: `HumanEval.jsonl`, with task_id, prompt, test and
entry_point, and `mbpp.jsonl`, with task_id, text, test_list and test_setup_code, of which the tasks 11
to 510 are the test set. Programs run in the sandbox. Ending early is not passing: behind the tests a
program prints a word that is drawn for it, and that no file has. This finds mistakes, and is no proof
against programs that look for the word in their own memory, where it must be: who compares models that
may have learnt to do so reads the programs that passed.
"""

import math
import re
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.evaluate import sandbox
from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks.reading import Record, find, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

KS = (1, 10, 100)
END_OF_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")
"""What begins something else behind a function (Chen et al. 2021)."""
MBPP_TEST = range(11, 511)
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEvalRow(Record):
    """A line of HumanEval's file."""

    task_id: str
    prompt: str
    test: str
    entry_point: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


class MbppRow(Record):
    """A line of MBPP's file."""

    task_id: int
    text: str
    test_list: tuple[str, ...] = Field(min_length=1)
    test_setup_code: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Programs(FileTask):
    """The share of tasks that one of k programs solves."""

    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Programs for each task. One is the most likely; several are drawn."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Of drawn ones; 0.8 is what Chen et al. took for k = 100."""
    new_tokens: Annotated[int, Field(gt=0)] = 512
    seconds: Annotated[int, Field(gt=0)] = 10
    """That a program may take."""
    isolated: bool = True
    """Without it, programs run with this user's files and network."""

    @property
    def metrics(self) -> dict[str, str]:  # type: ignore[override]
        return {f"pass@{k}": "mean" for k in KS if k <= self.samples}

    def asked(self, prompt: str, stop: tuple[str, ...]) -> tuple[Generation, ...]:
        temperature = self.temperature if self.samples > 1 else 0.0
        return tuple(
            Generation(prompt, stop, self.new_tokens, temperature, number)
            for number in range(self.samples)
        )

    @abstractmethod
    def program(self, target: Any, answer: str) -> str:
        """What is run: the answer and its tests, which fail by an exception."""

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        distinct = {answer: self._passes(item.target, str(answer)) for answer in set(answers)}
        right = sum(distinct[answer] for answer in answers)
        return {
            metric: (pass_at_k(self.samples, right, int(metric.partition("@")[2])),)
            for metric in self.metrics
        }

    def _passes(self, target: Any, answer: str) -> bool:
        word = secrets.token_hex(16)
        program = f"{self.program(target, answer)}\nprint({word!r})\n"
        limits = sandbox.Limits(seconds=self.seconds)
        ending = sandbox.run(program, limits, confine=self.isolated)
        return ending.status == 0 and ending.output.rstrip().endswith(word)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HumanEval(Programs):
    """The rest of a function whose head and description are the prompt."""

    chat: bool = False
    """Ask for the whole function in a block of code, as models that were tuned on chats answer."""
    name = "human-eval"

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for _, row in read_objects(self.data, path, HumanEvalRow):
                if self.chat:
                    prompt = f"Complete this Python function.\n\n```python\n{row.prompt}```"
                    yield Item(row.task_id, self.asked(prompt, ()), row)
                else:
                    yield Item(row.task_id, self.asked(row.prompt, END_OF_FUNCTION), row)

    def program(self, target: HumanEvalRow, answer: str) -> str:
        whole = fenced(answer)
        if f"def {target.entry_point}" not in whole:
            whole = target.prompt + answer
        return f"{whole}\n\n{target.test}\n\ncheck({target.entry_point})"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Mbpp(Programs):
    """A program from a sentence and its tests, in the words of Austin et al., without examples."""

    name = "mbpp"

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for _, row in read_objects(self.data, path, MbppRow):
                if row.task_id not in MBPP_TEST:
                    continue
                tests = "\n".join(row.test_list)
                prompt = (
                    f"You are an expert Python programmer, and here is your task: {row.text} "
                    f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
                )
                yield Item(str(row.task_id), self.asked(prompt, ("[DONE]",)), row)

    def program(self, target: MbppRow, answer: str) -> str:
        tests = "\n".join(target.test_list)
        return f"{target.test_setup_code}\n{fenced(answer)}\n\n{tests}"


def fenced(answer: str) -> str:
    """The first block of code of an answer that has one, else the answer."""
    found = FENCE.search(answer)
    return found[1] if found else answer


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k programs passes when `right` of `samples` do, without bias: one less the
    share of choices of k that hold none (Chen et al. 2021, equation 1)."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)
