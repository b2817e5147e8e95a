"""How well held-out text is predicted: bits a byte of UTF-8, and perplexity a token, by language.

The files are JSONL with objects {"text", "language"}, or `.txt` files in a folder for each language.
Bits per byte do not depend on the tokenizer and so compare models. Bytes a character differ between
scripts, so that between languages a ratio to another model says more than the figure alone.
"""

from collections.abc import Iterator, Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Item, Likely, Numbers, Rolling
from panthalassa.evaluate.tasks.reading import FILE_BYTES, Record, find, read_objects
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask

METRICS = {"bits_per_byte": "bits-per-byte", "perplexity": "perplexity"}


class Text(Record):
    """A line of the file."""

    text: str = Field(min_length=1)
    language: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BitsPerByte(FileTask):
    """Bits per byte and perplexity of whole texts."""

    name = "bits-per-byte"
    metrics = METRICS

    def read(self) -> Iterator[Item]:
        for path in find(self.data, ""):
            if path.endswith(".jsonl"):
                for number, row in read_objects(self.data, path, Text):
                    yield Item(f"{path}:{number}", (Rolling(row.text),), None, row.language)
            elif path.endswith(".txt"):
                language = path.partition("/")[0] if "/" in path else ""
                yield Item(path, (Rolling(self._text(path)),), None, language)

    def _text(self, path: str) -> str:
        place = f"evaluation file {self.data.uri}/{path}"
        if not 0 < self.data.size(path) <= FILE_BYTES:
            raise PanthalassaError(f"{place} is empty, or larger than {FILE_BYTES >> 20} MiB")
        try:
            return self.data.read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PanthalassaError(f"{place} is not UTF-8: byte {error.start}") from None

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        (request,), (answer,) = item.requests, answers
        assert isinstance(request, Rolling)
        assert isinstance(answer, Likely)
        return {
            "bits_per_byte": (-answer.nats, len(request.text.encode())),
            "perplexity": (-answer.nats, answer.tokens),
        }
