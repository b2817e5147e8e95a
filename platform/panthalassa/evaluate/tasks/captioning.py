"""Captions of images: chrF beside the ones people wrote, and the share that is one of them.

The files are JSONL with objects {"image", "captions", "prompt", "language"}; `image` is the path of a
file in the folder of the JSONL. The prompt, which stands behind the image, and the language may be
absent. Of several captions chrF takes the nearest.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks.answers import exact_match
from panthalassa.evaluate.tasks.reading import Record, find, picture, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask
from panthalassa.evaluate.text_metrics import chrf_counts

METRICS = {"chrf": "chrf", "exact_match": "mean"}


class Captioned(Record):
    """A line of the file."""

    image: str = Field(min_length=1)
    captions: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    prompt: str = ""
    language: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Captioning(FileTask):
    """chrF of all captions together, and the share of exact ones."""

    new_tokens: Annotated[int, Field(gt=0)] = 32
    name = "captioning"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ".jsonl"):
            for number, row in read_objects(self.data, path, Captioned):
                images = (picture(self.data, path, number, row.image),)
                asked = Generation(row.prompt, ("\n",), self.new_tokens, images=images)
                yield Item(f"{path}:{number}", (asked,), row.captions, row.language)

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        (answer,) = answers
        assert isinstance(answer, str)
        text = answer.strip()
        return {
            "chrf": chrf_counts(text, *item.target),
            "exact_match": (exact_match(text, item.target, item.group),),
        }
