"""Each stage of a preparation in one process, beside the library that does its work, called bare.

The documents go from stage to stage as in a preparation: what a rule drops, or repeats another, is not
there for the next, and the bare library gets what the platform's stage gets. Where a stage has no
library (rules, masking, packing), there is nothing beside it, and its CPU time counts on one side alone.
"""

import hashlib
import io
import json
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pycld2
import tiktoken
import tokenizers
from dedup import THRESHOLD, named
from fastwarc.warc import ArchiveIterator
from ftfy import fix_text
from rensa import RMinHash
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree
from tokenizers import pre_tokenizers, trainers

from panthalassa.corpus import decontaminate
from panthalassa.corpus.clean import Page, drop_boilerplate, judge
from panthalassa.corpus.components import places
from panthalassa.corpus.dedup import find_duplicates
from panthalassa.corpus.documents import Record
from panthalassa.corpus.formats.tables import read_json_lines
from panthalassa.corpus.formats.warc import read_warc
from panthalassa.corpus.language import SAMPLE, identify
from panthalassa.corpus.minhash import PERMUTATIONS, SHINGLE
from panthalassa.corpus.normalise import _ENCODING_ONLY, has_encoding_error, normalise
from panthalassa.corpus.pack import pack
from panthalassa.corpus.pii import mask_pii
from panthalassa.corpus.shards import count_targets, encode_shard
from panthalassa.corpus.sources import find_files
from panthalassa.corpus.tokenizer import SPECIAL, WORDS, Tokenizer

EVALUATION_EVERY = 500  # documents, of which one is taken for an evaluation

Texts = list[str]


@dataclass
class Stage:
    """MB (10^6 bytes) that go in, CPU seconds of the platform and of the bare libraries (0: none)."""

    name: str
    megabytes: float
    seconds: float
    bare: float
    libraries: str = ""
    unit: str = "text"


def size(texts: Texts) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


class Stages:
    """What has been measured so far."""

    def __init__(self) -> None:
        self.done: list[Stage] = []
        self.kept: Texts = []

    @property
    def text(self) -> float:
        """MB of text that was read."""
        return next(stage.megabytes for stage in self.done if stage.unit == "text")

    def take(
        self,
        name: str,
        megabytes: float,
        ours: Callable[[], Any],
        bare: Callable[[], Any] | None = None,
        libraries: str = "",
        unit: str = "text",
    ) -> Any:
        """Run both sides, in turn the other one first; what ours gave."""
        sides = [bare, ours] if len(self.done) % 2 else [ours, bare]
        seconds: dict[Any, float] = {None: 0.0}
        result = None
        for side in sides:
            if side:
                start = time.process_time()
                given = side()
                seconds[side] = time.process_time() - start
                result = given if side is ours else result
        self.done.append(Stage(name, megabytes, seconds[ours], seconds[bare], libraries, unit))
        print(f"{name}: {seconds[ours]:.1f} s, bare {seconds[bare]:.1f} s", file=sys.stderr)
        return result

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.done)

    @property
    def bare(self) -> float:
        return sum(stage.bare for stage in self.done)


def measure(folder: Path, vocabulary: int, length: int) -> Stages:
    """All stages over the sources that `manuals.write` made."""
    stages = Stages()
    texts = _read(stages, folder)
    texts = _refine(stages, texts)
    texts = stages.kept = _deduplicate(stages, texts)
    _encode(stages, texts, vocabulary, length)
    return stages


def _read(stages: Stages, folder: Path) -> Texts:
    texts: Texts = []
    for name, reader, bare, libraries in (
        ("crawl", read_warc, bare_warc, "fastwarc, resiliparse"),
        ("texts", read_json_lines, bare_json_lines, "json"),
    ):
        files = find_files([str(folder / name)])
        paths = [folder / name / file.path for file in files]
        records = stages.take(
            f"read {'web pages' if name == 'crawl' else 'JSON lines'}",
            sum(file.size for file in files) / 1e6,
            lambda files=files, reader=reader: [r for f in files for r in reader(f)],
            lambda paths=paths, bare=bare: [t for path in paths for t in bare(path)],
            libraries,
            "files",
        )
        texts += [record.text for record in records if isinstance(record, Record)]
    return texts


def bare_warc(path: Path) -> Texts:
    texts = []
    with path.open("rb") as stream:
        for record in ArchiveIterator(stream, parse_http=True):
            tree = HTMLTree.parse(record.reader.read().decode())
            texts.append(extract_plain_text(tree, main_content=True, alt_texts=False))
    return texts


def bare_json_lines(path: Path) -> Texts:
    with path.open() as stream:
        return [json.loads(line)["text"] for line in stream]


def _refine(stages: Stages, texts: Texts) -> Texts:
    flagged = [line for t in texts for line in t.split("\n") if has_encoding_error(line)]

    def bare_normalise() -> None:
        for text in texts:
            unicodedata.normalize("NFC", text)
        for line in flagged:
            fix_text(line, _ENCODING_ONLY)

    def take(name: str, given: Texts, ours: Callable[[], Any], *bare: Any) -> Any:
        return stages.take(name, size(given), ours, *bare)

    texts = take(
        "normalise", texts, lambda: [*map(normalise, texts)], bare_normalise, "unicodedata, ftfy"
    )
    texts = [text for text in texts if text]
    texts = take("cut boilerplate", texts, lambda: [*map(drop_boilerplate, texts)])
    samples = [_sample(text).encode() for text in texts]
    languages = take(
        "language",
        texts,
        lambda: [*map(identify, texts)],
        lambda: [pycld2.detect(sample, isPlainText=True) for sample in samples],
        "pycld2",
    )
    codes = [found.code for found in languages]
    removals = take("19 rules", texts, lambda: [*map(judge, map(Page, texts, codes))])
    kept = [text for text, removal in zip(texts, removals, strict=True) if removal is None]
    masked: Texts = take("mask personal data", kept, lambda: [*map(mask_pii, kept)])
    return masked


def _sample(text: str) -> str:
    """Of a text what the platform shows to CLD2."""
    middle = (len(text) - SAMPLE) // 2
    whole = len(text) <= 3 * SAMPLE
    return text if whole else text[:SAMPLE] + text[middle : middle + SAMPLE] + text[-SAMPLE:]


def _deduplicate(stages: Stages, texts: Texts) -> Texts:
    hashes = stages.take(
        "hash",
        size(texts),
        lambda: [hashlib.sha256(text.encode()).digest() for text in texts],
        lambda: [hashlib.sha256(text.encode()).digest() for text in texts],
        "hashlib",
    )
    once = dict(zip(hashes, texts, strict=True))
    texts = list(once.values())
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    names = stages.take(
        "MinHash and its bands",
        size(texts),
        lambda: named(column),
        lambda: bare_minhash(texts),
        "rensa",
    )
    _, worse = stages.take(
        "near-duplicates",
        size(texts),
        lambda: find_duplicates(names, THRESHOLD, lambda partition, rows: column.take(rows)),
    )
    dropped = {int(row) for row in places(worse)[1]}
    alone = [text for row, text in enumerate(texts) if row not in dropped]
    contamination = decontaminate.build([("evaluations", alone[::EVALUATION_EVERY])])
    stages.take("decontaminate", size(texts), lambda: contamination.find(column))
    return alone


def bare_minhash(texts: Texts) -> None:
    for text in texts:
        words = text.split()
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update([" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)])
        sketch.digest()


def _encode(stages: Stages, texts: Texts, vocabulary: int, length: int) -> None:
    amount = size(texts)
    tokenizer = stages.take(
        "train the tokenizer",
        amount,
        lambda: Tokenizer.train(texts, vocabulary),
        lambda: bare_training(texts, vocabulary),
        "tokenizers",
    )
    ranks = tokenizer._encoding._mergeable_ranks
    bare = tiktoken.Encoding("bare", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    documents = stages.take(
        "encode",
        amount,
        lambda: [tokenizer.encode_document(text) for text in texts],
        lambda: [np.array(bare.encode_ordinary(text), np.int32) for text in texts],
        "tiktoken",
    )
    packed = stages.take(
        "pack", amount, lambda: pack(documents, length, tokenizer.pad).shuffled(0).filled()
    )
    flat = pa.array(packed.tokens.reshape(-1), pa.int32())
    rows = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(flat, length)})

    def write() -> None:
        hashlib.sha256(encode_shard(packed, 32)).digest()
        count_targets(packed, tokenizer.vocabulary_size)

    def bare_write() -> None:
        stream = io.BytesIO()
        pq.write_table(rows, stream, row_group_size=32, compression="zstd")
        hashlib.sha256(stream.getvalue()).digest()

    stages.take("write shards, SHA-256", amount, write, bare_write, "pyarrow, hashlib")


def bare_training(texts: Texts, vocabulary: int) -> None:
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
