"""Preparation of chats: files of examples come in, a corpus that says what counts goes out, or is found.

Examples are read, encoded, cut to whole answers or left out where they are too long, laid into rows
without ever being divided, and written as shards like any other corpus, with the tokenizer of the model
that is to be tuned: `manifest.json` is the last file and the commit. The tokens of all examples are in
this process's memory at once; of texts, those of one record.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args

import numpy as np
import pyarrow as pa

from panthalassa import config
from panthalassa.config_model import Vision
from panthalassa.corpus.destination import already_prepared, claim, commit, refuse_overlap
from panthalassa.corpus.documents import Problem, SourceFile
from panthalassa.corpus.funnel import Tally
from panthalassa.corpus.images import BadImage, prepared
from panthalassa.corpus.manifest import (
    TOKENIZER,
    Index,
    Manifest,
    Objective,
    Shard,
    Split,
    TokenizerFile,
)
from panthalassa.corpus.pack import pack_whole
from panthalassa.corpus.pairs import images_of
from panthalassa.corpus.parts import INDEXED, write_index
from panthalassa.corpus.reading import add_problem, check_problems, refuse_changed
from panthalassa.corpus.shards import Counts, count_targets, unigram_loss, write, write_shard
from panthalassa.corpus.sources import content_sha256, list_files, path_safe
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.errors import ChatError, CorpusError
from panthalassa.finetune.chat import check_format
from panthalassa.finetune.encode import Encoded, encode_example
from panthalassa.finetune.examples import read_examples
from panthalassa.finetune.images import Hashes, hash_images, read_image
from panthalassa.finetune.split import positions
from panthalassa.storage import Storage, open_storage

RECIPE = 1
"""Counts up whenever the same input would give other shards."""
KINDS = re.compile(r"\.((jsonl|ndjson|json)(\.(gz|zst|bz2))?|parquet)$", re.I)


def prepare_chats(
    corpus: config.Corpus,
    tokenizer: TextTokenizer,
    objective: Objective,
    tell: Callable[[str], None],
    vision: Vision | None = None,
) -> Manifest:
    """Make the corpus for fine-tuning that `corpus` describes, or return it when it is already there.

    `corpus.sources` are files or folders of JSON lines and Parquet (`finetune.examples`); of the other
    keys those count that say where the corpus is, how much is held out and may be bad, and how long
    rows, row groups and shards are. tokenizer: the model's, whose files are kept with the corpus.
    vision: what reads images in it.
    Raises CorpusError for what can not be read, another content of the folder, and examples that leave
    nothing to train on or nothing to hold out, ChatError for a chat template that can not be used.
    """
    check_format(tokenizer)
    kept = tokenizer.files()
    vocabulary = kept[TOKENIZER]
    storage = open_storage(corpus.directory)
    files = list(_files(corpus.sources, storage))
    hashes = [content_sha256(file) for file in files]
    images = hash_images(files, objective) if vision else {}
    preparation = _preparation(corpus, kept, objective, files, hashes, vision, images)
    if done := already_prepared(storage, preparation):
        tell(f"{storage.uri} is already prepared, fingerprint {done.fingerprint}")
        return done
    claim(storage, corpus, preparation)
    size = sum(file.size for file in files) / 1e6
    tell(f"reading {size:.2f} MB in {len(files)} files from {', '.join(corpus.sources)}")
    reading = _Reading(tokenizer, corpus.sequence_length, objective, vision, images)
    for file, sha256 in sorted(zip(files, hashes, strict=True), key=lambda pair: _name(pair[0])):
        reading.read(file)
        refuse_changed(file, sha256)
    if problems := check_problems(reading.tally, corpus, files):
        tell(problems)
    groups = _grouped(reading, corpus.held_out_share)
    held_out = sum(len(members) for group, members in groups.items() if group.startswith("held_"))
    tell(f"{reading.told()}; {held_out} are held out")
    for name, data in kept.items():
        write(storage, name, data)
    written = _write(storage, corpus, tokenizer, vocabulary, groups)
    manifest = Manifest(
        objective=objective,
        images=images_of(vision) if vision and any(s.images for s in written.shards) else None,
        sequence_length=corpus.sequence_length,
        vocabulary_size=tokenizer.vocabulary_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        tokenizer_sha256=_sha256(vocabulary),
        tokenizer_files={
            name: _sha256(kept[name]) for name in get_args(TokenizerFile) if name in kept
        },
        documents=written.documents,
        characters=written.characters,
        text_bytes=written.text_bytes,
        unigram_loss=unigram_loss(written.targets["train"], written.targets["held_out"]),
        preparation=preparation,
        shards=written.shards,
        index=written.index,
    )
    commit(storage, manifest)
    tell(_summary(manifest))
    return manifest


def _grouped(reading: "_Reading", share: float) -> dict[str, list[tuple[Encoded, str]]]:
    """The examples by `{split}/{domain}`, in the order of their hashes.

    Raises CorpusError when there is not one to train on and another to hold out.
    """
    kept = sorted(reading.kept.values(), key=lambda pair: pair[0].hash)
    found = positions([encoded for encoded, _ in kept])
    if len(distinct := set(found)) < 2:
        tied = any(encoded.shown for encoded, _ in kept)
        raise CorpusError(
            f"{reading.told()}: at least two with different prompts are needed"
            f"{', and without an image that ties them together' if tied else ''}, one of which is held "
            "out. Add examples to corpus.sources, or raise corpus.sequence_length, and remove the "
            "folder corpus.directory."
        )
    below = _held_out_below(distinct, share)
    groups: defaultdict[str, list[tuple[Encoded, str]]] = defaultdict(list)
    for position, (encoded, source) in zip(found, kept, strict=True):
        split = "held_out" if position < below else "train"
        groups[f"{split}/{encoded.domain}"].append((encoded, source))
    return groups


def _name(file: SourceFile) -> tuple[str, str]:
    return file.source, file.path


def _files(sources: list[str], destination: Storage) -> Iterator[SourceFile]:
    """The files of the sources, each of which is one, or a folder without the destination."""
    folders = []
    for source in sources:
        if KINDS.search(source) and (file := _file(source)):
            yield file
        else:
            folders.append(source)
    if folders or not sources:
        files = [file for file in list_files(folders).files if KINDS.search(file.path)]
        if not files:
            raise CorpusError(
                f"{', '.join(folders)} hold no .jsonl, .ndjson, .json or .parquet file. Add some, or "
                "correct the key corpus.sources."
            )
        refuse_overlap(files, destination)
        yield from files


def _file(source: str) -> SourceFile | None:
    """The file of that name, unless it is a folder."""
    folder, _, name = source.rpartition("/")
    storage = open_storage(folder or ("/" if source.startswith("/") else "."))
    try:
        size = storage.size(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(
            f"source {source} can not be read: {error}. Correct the key corpus.sources."
        ) from error
    domain = path_safe(KINDS.sub("", name))
    return SourceFile(storage.uri, name, size, domain, PurePosixPath(storage.root).name)


def _preparation(
    corpus: config.Corpus,
    tokenizer: Mapping[str, bytes],
    objective: Objective,
    files: list[SourceFile],
    hashes: list[str],
    vision: Vision | None,
    images: Hashes,
) -> str:
    """SHA-256 of all that decides the outcome."""
    read = {"sequence_length", "held_out_share", "rows_per_group", "rows_per_shard"}
    settings = corpus.model_dump(include=read)
    content = sorted(
        [*_name(file), file.domain, digest] for file, digest in zip(files, hashes, strict=True)
    )
    beside = sorted([name, _sha256(data)] for name, data in tokenizer.items() if name != TOKENIZER)
    made_by = [_sha256(tokenizer[TOKENIZER]), *([beside] if beside else [])]
    made_from: list[object] = ["chats", RECIPE, objective, *made_by, settings, content]
    if vision:
        made_from.append([vision.image_size, vision.tokens])
    if images:
        made_from.append(sorted([*name, digest] for (_, *name), digest in images.items()))
    return _sha256(json.dumps(made_from, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Reading:
    """The examples that are kept, with the source of each, and counts of all others."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        sequence_length: int,
        objective: Objective,
        vision: Vision | None,
        hashes: Hashes,
    ) -> None:
        self.kept: dict[bytes, tuple[Encoded, str]] = {}
        self.tally = Tally()
        self._tokenizer = tokenizer
        self._length = sequence_length
        self._objective = objective
        self._vision = vision
        self._hashes = hashes
        self._repeated = 0
        self._too_long: list[str] = []

    def read(self, file: SourceFile) -> None:
        for found in read_examples(file, self._objective):
            if isinstance(found, Problem):
                add_problem(self.tally, file, found)
                continue
            tokens = self._vision.tokens if self._vision else 0
            try:
                images = [self._image(file, path) for path in found.images]
                encoded = encode_example(self._tokenizer, found, self._length, images, tokens)
            except (BadImage, ChatError) as error:
                add_problem(self.tally, file, Problem(f"{file.root}/{found.place}", str(error)))
                continue
            self.tally.add("read", found.domain)
            if encoded is None:
                self._too_long.append(f"{file.source}/{found.place}")
            elif encoded.hash in self.kept:
                self._repeated += 1
            else:
                self.kept[encoded.hash] = encoded, file.source

    def _image(self, file: SourceFile, path: str) -> bytes:
        """An image of an example, prepared. Raises BadImage."""
        if self._vision is None:
            raise BadImage("image", "there are images, and the model reads text alone")
        return prepared(read_image(file, path, self._hashes), self._vision.image_size)

    def told(self) -> str:
        """What became of the examples."""
        cut = sum(encoded.cut for encoded, _ in self.kept.values())
        told = f"{len(self.kept)} distinct examples"
        if self._repeated:
            told += f", {self._repeated} duplicates dropped"
        if cut:
            told += f", {cut} cut behind the last answer that fits"
        if self._too_long:
            told += (
                f", {len(self._too_long)} of more than {self._length} tokens left out "
                f"(the first is {self._too_long[0]})"
            )
        return told


def _held_out_below(positions: set[int], share: float) -> int:
    """The position below which examples are held out: not none, and not all."""
    return min(max(int(share * 2**64), min(positions) + 1), max(positions))


@dataclass
class _Written:
    """What is known of the groups that are written."""

    shards: list[Shard]
    index: list[Index]
    targets: dict[Split, Counts]
    documents: dict[str, int]
    characters: dict[str, int]
    text_bytes: dict[str, int]


def _write(
    storage: Storage,
    corpus: config.Corpus,
    tokenizer: TextTokenizer,
    vocabulary: bytes,
    groups: Mapping[str, Sequence[tuple[Encoded, str]]],
) -> _Written:
    """Write the shards and the index of each `{split}/{domain}`."""
    size = tokenizer.vocabulary_size
    written = _Written([], [], {s: np.zeros(size, np.int64) for s in get_args(Split)}, {}, {}, {})
    for group, members in sorted(groups.items()):
        examples = [encoded for encoded, _ in members]
        split: Split = "train" if group.startswith("train/") else "held_out"
        packing = pack_whole(
            [example.documents for example in examples],
            [example.answers for example in examples],
            corpus.sequence_length,
            tokenizer.pad,
            [example.images for example in examples] if any(map(_is_shown, examples)) else None,
        ).shuffled(int.from_bytes(hashlib.sha256(group.encode()).digest()[:16]))
        shards = []
        for number, start in enumerate(range(0, len(packing), corpus.rows_per_shard)):
            rows = packing.filled(start, start + corpus.rows_per_shard)
            path, domain = f"{group}/{number:05d}.parquet", group.partition("/")[2]
            shards.append(write_shard(storage, path, split, domain, rows, corpus.rows_per_group))
            written.targets[split] += count_targets(rows, size)
        index = write_index(storage, group, 0, _documents(members), shards, vocabulary)
        written.shards += shards
        written.index.append(index)
        written.documents[group] = len(examples)
        written.characters[group] = sum(example.characters for example in examples)
        written.text_bytes[group] = sum(example.text_bytes for example in examples)
    return written


def _is_shown(example: Encoded) -> bool:
    return any(example.images)


def _documents(members: Sequence[tuple[Encoded, str]]) -> pa.Table:
    """The provenance of examples, as the index has it."""
    strings = {name: pa.string() for name in INDEXED}
    schema = pa.schema({**strings, "hash": pa.binary(), "bytes": pa.int64()})
    rows = [
        {
            "hash": encoded.hash,
            "source": source,
            "place": encoded.place,
            "bytes": encoded.text_bytes,
        }
        for encoded, source in members
    ]
    return pa.Table.from_pylist(rows, schema)


def _summary(manifest: Manifest) -> str:
    rows, tokens = sum(s.rows for s in manifest.shards), sum(s.tokens for s in manifest.shards)
    counted = sum(manifest.counted().values())
    return (
        f"{len(manifest.shards)} shards of {rows} samples and {tokens} tokens, of which {counted} "
        f"count; {100 * tokens / rows / manifest.sequence_length:.1f} % filled; unigram loss "
        f"{manifest.unigram_loss:.3f}; fingerprint {manifest.fingerprint}"
    )
