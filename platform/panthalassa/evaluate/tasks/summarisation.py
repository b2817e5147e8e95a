"""Summaries: ROUGE-1, -2, -L and chrF beside the ones people wrote.

The files are JSONL with objects {"document", "summary", "language"}; the language may be absent.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks.reading import Record, find, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask
from panthalassa.evaluate.text_metrics import ROUGES, chrf_counts, rouge

METRICS = {**dict.fromkeys(ROUGES, "mean"), "chrf": "chrf"}


class Summarised(Record):
    """A line of the file."""

    document: str = Field(min_length=1)
    summary: str = Field(min_length=1)
    language: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Summarisation(FileTask):
    """The mean ROUGE (F-measures), and chrF of all together."""

    new_tokens: Annotated[int, Field(gt=0)] = 128
    name = "summarisation"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for number, row in read_objects(self.data, path, Summarised):
                prompt = f"{row.document}\n\nSummary:"
                asked = Generation(prompt, stop=("\n\n",), new_tokens=self.new_tokens)
                yield Item(f"{path}:{number}", (asked,), row.summary, row.language)

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        (answer,) = answers
        assert isinstance(answer, str)
        text = answer.strip()
        found: dict[str, Numbers] = {
            name: (value,) for name, value in rouge(text, item.target).items()
        }
        return {**found, "chrf": chrf_counts(text, item.target)}
