"""Corpora of shards with images, without a preparation, and what a reader must make of them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phases import bare_manifest
from PIL import Image

from panthalassa.corpus.images import encoded
from panthalassa.corpus.manifest import Images, Manifest, Split
from panthalassa.corpus.pack import Packed
from panthalassa.corpus.shards import write_shard
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.storage import open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.order import Location
from panthalassa.stream.reader import PADDING, Samples, ShardReader

LENGTH = 32
KIND = Images(size=4, tokens=3)
WORDS = 3
"""Tokens of text behind the images of a document."""
ROOM = 2 + WORDS
"""Tokens of a document beside its images: bos, text, eos."""

Rows = list[list[int]]
"""The images of each document of each row; 0 is a document of text."""


def jpeg(number: int, size: int = KIND.size) -> bytes:
    """A prepared image that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return encoded(pixels)


def picture(number: int, size: int = KIND.size) -> NDArray[np.uint8]:
    """Its pixels [size, size, 3], as Pillow reads them."""
    return np.asarray(Image.open(io.BytesIO(jpeg(number, size))))


def packed(rows: Rows, first: int, kind: Images = KIND, length: int = LENGTH) -> Packed:
    """Rows of documents with pictures number `first` and on; their texts count in the loss."""
    every, lengths, answers, images = [], [], [], []
    for row in rows:
        tokens: list[int] = []
        bounds, sizes, files = [], [], []
        for count in row:
            start = len(tokens)
            tokens.append(Tokenizer.bos)
            for _ in range(count):
                span = [Tokenizer.image_start, *[Tokenizer.image] * kind.tokens]
                tokens += [*span, Tokenizer.image_end]
                files.append(jpeg(first, kind.size))
                first += 1
            text = len(tokens)
            tokens += [*range(100, 100 + WORDS), Tokenizer.eos]
            bounds += [text, len(tokens)]
            sizes.append(len(tokens) - start)
        assert len(tokens) <= length
        every.append([*tokens, *[Tokenizer.pad] * (length - len(tokens))])
        lengths.append(sizes)
        answers.append(bounds)
        images.append(files)
    offsets = [[0] * len(row) for row in lengths]
    return Packed(np.array(every, np.int32), lengths, offsets, answers, images)


def as_text(rows: Packed) -> Packed:
    """The same rows as a shard of text holds them."""
    return Packed(rows.tokens, rows.lengths, rows.offsets)


@dataclass(frozen=True)
class ImageCorpus:
    folder: Path
    manifest: Manifest
    rows: list[Packed]
    """By number of shard."""

    def reader(self, quarantine: bool = False) -> ShardReader:
        cache = ShardCache(self.folder / "cache", 1 << 20, open_storage(str(self.folder)))
        return ShardReader(cache, self.manifest, quarantine)

    def expected(self, place: Location) -> Samples:
        """What stands there, from what was written."""
        tokens, documents, counted, images = [], [], [], []
        for shard, group, row in zip(place.shard, place.row_group, place.row, strict=True):
            at = sum(self.manifest.shards[shard].row_groups[:group]) + row
            written = self.rows[shard].slice(at, at + 1)
            tokens.append(written.tokens[0])
            numbers = np.repeat(np.arange(len(written.lengths[0])), written.lengths[0])
            padded = np.full(len(tokens[-1]), PADDING)
            padded[: len(numbers)] = numbers
            documents.append(padded)
            counts = padded != PADDING
            if written.answers is not None:
                counts = np.zeros(len(padded), bool)
                for start, end in zip(
                    written.answers[0][::2], written.answers[0][1::2], strict=True
                ):
                    counts[start:end] = True
            counted.append(counts)
            for file in written.images[0] if written.images else []:
                images.append(np.asarray(Image.open(io.BytesIO(file))))
        kind = self.manifest.images
        assert kind
        pixels = np.array(images, np.uint8).reshape(-1, kind.size, kind.size, 3)
        return Samples(np.array(tokens), np.array(documents), np.array(counted), pixels)


def write_corpus(
    folder: Path,
    rows: Mapping[str, Iterable[Packed]],
    rows_per_group: int = 3,
    kind: Images | None = KIND,
    length: int = LENGTH,
) -> ImageCorpus:
    """A corpus of shards by `{split}/{domain}`."""
    storage, shards, written = open_storage(str(folder)), [], []
    for name, parts in rows.items():
        split, domain = name.split("/")
        where: Split = "train" if split == "train" else "held_out"
        for number, part in enumerate(parts):
            path = f"{name}/{number:05d}.parquet"
            shards.append(write_shard(storage, path, where, domain, part, rows_per_group))
            written.append(part)
    manifest = bare_manifest(shards, length).model_copy(update={"images": kind})
    return ImageCorpus(folder, manifest, written)


def small_corpus(folder: Path) -> ImageCorpus:
    """Two domains of text and two with images, of 0 to 3 images a document."""
    one, two = [[1], [2], [1, 1], [3], [1]], [[2], [1], [1, 0], [1], [3], [1, 1], [2]]
    text = [[0], [0, 0], [0, 0, 0], [0, 0]]
    return write_corpus(
        folder,
        {
            "train/aa": [as_text(packed(text, 0))],
            "train/bb": [as_text(packed(text * 2, 0))],
            "train/images-aa": [packed(one, 1000), packed(two, 2000)],
            "train/images-bb": [packed(two, 3000)],
            "held_out/images-aa": [packed(one, 4000)],
            "held_out/aa": [as_text(packed(text, 0))],
        },
    )
