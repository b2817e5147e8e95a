"""The manifest: what a corpus is, and the commit that makes it one.

A corpus is a folder of Parquet shards, a tokenizer, an index of its documents and a report.
`manifest.json` is written last and lists every one of them with its SHA-256; a folder without it is
no corpus. The SHA-256 of the manifest's own bytes is the corpus *fingerprint*, to which a run's order
of samples is tied.

A shard holds packed samples of one domain, one a row, in three columns: `tokens`, a fixed-size list
of `sequence_length` token ids; `lengths`, those of the documents in the row from left to right (what
is left of the row behind them is padding); and `offsets`, how many tokens of each of these documents
are in other rows before it: 0 where it begins here, and more where it goes on.

A shard for fine-tuning has one column more, `answers`: the runs of tokens in the row that count in
the loss, as positions [start, end, start, end …], each end behind its run. Without it every token
counts. No document of such a shard is in more than one row.

A shard with images has a column `images`: those of each row, from left to right, as JPEG files,
squares of `Images.size` pixels in RGB. In `tokens` an image is `Images.tokens` times
`<|image_pad|>` between `<|vision_start|>` and `<|vision_end|>`; none of these counts in the loss. No
document of such a shard is in more than one row either.
"""

import hashlib
from collections import Counter
from functools import cached_property
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

MANIFEST = "manifest.json"
MANIFESTS = "manifests"
"""The folder of a run with those of its corpora."""
TOKENIZER = "tokenizer.json"
CLAIM = "preparation.json"
"""Says whose the folder is before the manifest does."""
PAGE = "corpus.html"
ANSWERS = "answers"
"""The column of a shard that says what counts."""
IMAGES = "images"
"""The column of a shard with the images of its rows."""
IMAGE_DELIMITERS: Final = 2
"""Positions of `<|vision_start|>` and `<|vision_end|>`, which an image takes beside its own."""
Split = Literal["train", "held_out"]
TokenizerFile = Literal[
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
]
"""What may lie beside a tokenizer.json that is none of this platform's."""
Objective = Literal["sft", "dpo"]
"""Answers to learn (supervised fine-tuning), or pairs of a chosen and a rejected one (Rafailov et al.
2023)."""


class Record(BaseModel):
    """A part of a corpus's folder as JSON: no key is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Images(Record):
    """What every image of a corpus is: a square of `size` pixels, which takes `tokens` positions."""

    size: int = Field(gt=0)
    tokens: int = Field(gt=0)


class Shard(Record):
    """One Parquet file: rows of one domain, in row groups that are read whole. `counted` are the tokens
    that count in the loss, where not all do; `images` how many there are, where there are any."""

    path: str
    domain: str
    split: Split
    rows: int = Field(gt=0)
    tokens: int = Field(gt=0)
    counted: int | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)
    images: int | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)
    row_groups: tuple[int, ...] = Field(min_length=1)
    size: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Index(Record):
    """One Parquet file with the provenance of the documents of a part of a split and domain."""

    path: str
    documents: int = Field(gt=0)
    size: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Record):
    """A corpus in full.

    `documents`, `characters` and `text_bytes` (UTF-8) are counted by `{split}/{domain}`.
    `unigram_loss` is the held-out loss (nats a token) of the train split's token counts:
    `corpus.shards.unigram_loss`.
    `preparation` is the SHA-256 of the settings and source files that the corpus was made from.
    `index` has the provenance of every document (`corpus.parts`), and `report_sha256` is that of
    `report.json` (`corpus.funnel`).
    `objective` is that of a corpus for fine-tuning. For `dpo` a row holds whole pairs: its documents
    2k and 2k + 1 are the chosen and the rejected answer of pair k, each behind its own prompt.
    `images` is given when a shard has any.
    `tokenizer_files` are those beside the tokenizer of another model, with their SHA-256; `bos` is that
    of its tokens, if it has one.
    """

    format: Literal[2] = 2
    objective: Objective | None = Field(default=None, exclude_if=lambda value: value is None)
    images: Images | None = Field(default=None, exclude_if=lambda value: value is None)
    sequence_length: int = Field(gt=1)
    vocabulary_size: int = Field(gt=2)
    bos: int | None
    eos: int
    tokenizer_sha256: str
    tokenizer_files: dict[TokenizerFile, str] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    documents: dict[str, int]
    characters: dict[str, int]
    text_bytes: dict[str, int]
    unigram_loss: float
    preparation: str = ""
    shards: list[Shard] = Field(min_length=1)
    index: list[Index] = Field(default_factory=list)
    report_sha256: str = ""

    def split(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def tokens(self) -> dict[str, int]:
        """Tokens, delimiters included, by `{split}/{domain}`."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            found[f"{shard.split}/{shard.domain}"] += shard.tokens
        return dict(sorted(found.items()))

    def text_tokens(self) -> dict[str, int]:
        """`tokens` without those that images take."""
        found = Counter(self.tokens())
        for shard in self.shards:
            if self.images and shard.images:
                each = self.images.tokens + IMAGE_DELIMITERS
                found[f"{shard.split}/{shard.domain}"] -= shard.images * each
        return dict(found)

    def counted(self) -> dict[str, int]:
        """Tokens that count in the loss, as far as shards say so, by `{split}/{domain}`."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            found[f"{shard.split}/{shard.domain}"] += shard.counted or 0
        return dict(sorted(found.items()))

    def encode(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


def read_manifest(storage: Storage, name: str = MANIFEST) -> Manifest:
    """The corpus at `storage`. Raises CorpusError when there is none or it can not be read."""
    place = f"{storage.uri}/{name}"
    try:
        return Manifest.model_validate_json(storage.read(name))
    except FileNotFoundError:
        raise CorpusError(
            f"no corpus at {storage.uri}: {name} is missing. "
            "Make one with `panthalassa prepare`, or correct the key corpus.directory."
        ) from None
    except OSError as error:
        if not storage.is_local:  # then the error names the place and the remedy
            raise CorpusError(f"no corpus can be read: {error}.") from error
        raise CorpusError(f"{place} can not be read: {error}. Check its permissions.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CorpusError(
            f"{place} is not a corpus manifest: {key}: {first['msg']}. "
            "Prepare the corpus anew into an empty folder."
        ) from error
