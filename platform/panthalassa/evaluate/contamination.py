"""Which items of an evaluation a model may have been trained on: those that share thirteen words in a
row with a training document.

The words, their number, and how letters stand for words in scripts without spaces are those of
`corpus.decontaminate`, which keeps such documents out of a corpus that is told the evaluations; here a
corpus is asked that was not told. Items' passages are one sorted array of 64-bit numbers; the corpus is
read shard by shard, each verified and decoded by its tokenizer, so that memory is that of one shard. A
document that is longer than a row of the corpus is cut there, and a passage across the cut is not found.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panthalassa.corpus.decontaminate import passages_of
from panthalassa.corpus.manifest import Manifest, Shard, read_manifest
from panthalassa.corpus.minhash import Hashes, slices
from panthalassa.corpus.shards import decode_shard
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.errors import CorpusError
from panthalassa.evaluate.results import Contamination, Scores, figure
from panthalassa.evaluate.task import Generation, Item, Likelihood, Rolling
from panthalassa.storage import Storage

ROWS_AT_ONCE = 256
ITEMS_AT_ONCE = 1024


@dataclass(frozen=True)
class Passages:
    """The passages [n] of a task's items, ascending, each with the number of its item (`owners` [n])."""

    ids: tuple[str, ...]
    passages: Hashes
    owners: NDArray[np.int64]

    def find(self, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which passages [n] are in one of the texts."""
        found = np.zeros(len(self.passages), bool)
        for start, stop in slices(texts):
            seen = np.unique(passages_of(texts[start:stop])[0])
            first, behind = (
                np.searchsorted(self.passages, seen, side) for side in ("left", "right")
            )
            for passage in np.flatnonzero(behind > first):
                found[first[passage] : behind[passage]] = True
        return found


@dataclass(frozen=True)
class Contaminated:
    """What a corpus has of a task."""

    items: int
    ids: frozenset[str]
    """Items that share a passage with a training document."""
    short: int
    """Items that have no passage, being shorter, of which nothing is known."""

    def record(self, corpus: str, scores: Scores) -> Contamination:
        """What is kept of it, with the task's metrics over the other items; corpus: its fingerprint."""
        clean = np.array([name not in self.ids for name in scores.ids])
        without = {}
        if clean.any() and not clean.all():
            without = {
                metric: found
                for metric, aggregate in scores.metrics.items()
                if (found := figure(aggregate, scores.numbers[metric][clean]))
            }
        return Contamination(
            corpus=corpus, items=self.items, found=len(self.ids), short=self.short, without=without
        )


@dataclass(frozen=True)
class TrainingTexts:
    """The documents that a corpus trains on, or their parts in rows, some at a time.

    Its iteration raises CorpusError for a shard that is not there, or is not what its hash says.
    """

    corpus: Storage
    manifest: Manifest
    tokenizer: TextTokenizer

    def __iter__(self) -> Iterator[pa.ChunkedArray]:
        for shard in self.manifest.split("train"):
            yield from _texts(self.corpus, shard, self.tokenizer)


def training_texts(corpus: Storage) -> TrainingTexts:
    """Raises CorpusError for a corpus that is not there."""
    manifest = read_manifest(corpus)
    return TrainingTexts(corpus, manifest, read_tokenizer(corpus, manifest))


def contaminated(
    documents: Iterable[pa.ChunkedArray], tasks: Mapping[str, Iterable[Item]]
) -> dict[str, Contaminated]:
    """What the documents have of each task."""
    sought = {name: passages(items) for name, items in tasks.items()}
    found = {name: np.zeros(len(kept.passages), bool) for name, kept in sought.items()}
    for texts in documents:
        for name, kept in sought.items():
            found[name] |= kept.find(texts)
    return {
        name: Contaminated(
            len(kept.ids),
            frozenset(kept.ids[owner] for owner in np.unique(kept.owners[found[name]])),
            len(kept.ids) - len(np.unique(kept.owners)),
        )
        for name, kept in sought.items()
    }


def passages(items: Iterable[Item]) -> Passages:
    """Of all that items ask and expect."""
    ids: list[str] = []
    found, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in batched(items, ITEMS_AT_ONCE):
        texts = [
            (len(ids) + place, text) for place, item in enumerate(batch) for text in texts_of(item)
        ]
        ids += [item.id for item in batch]
        owner = np.array([place for place, _ in texts])
        listed = pa.chunked_array([pa.array([text for _, text in texts], pa.large_string())])
        for start, stop in slices(listed):
            numbers, text = passages_of(listed[start:stop])
            found.append(numbers)
            owners.append(owner[start + text])
    joined, of = np.concatenate(found), np.concatenate(owners)
    order = np.argsort(joined, kind="stable")
    return Passages(tuple(ids), joined[order], of[order])


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    following = iter(items)
    while batch := list(islice(following, size)):
        yield batch


def texts_of(item: Item) -> Iterator[str]:
    """The distinct texts of an item, with what is expected where that is a text."""
    texts: dict[str, None] = {}
    for request in item.requests:
        match request:
            case Likelihood(context, continuation):
                texts[context + continuation] = None
            case Rolling(text):
                texts[text] = None
            case Generation(prompt):
                texts[prompt] = None
    if isinstance(item.target, str):
        texts[item.target] = None
    yield from texts


def _texts(corpus: Storage, shard: Shard, tokenizer: TextTokenizer) -> Iterator[pa.ChunkedArray]:
    place = f"shard {corpus.uri}/{shard.path}"
    try:
        data = corpus.read(shard.path, shard.sha256)
    except OSError as error:
        raise CorpusError(f"{place} can not be read: {error}. Restore it.") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise CorpusError(f"{place} is not what its hash says. Restore it, or prepare anew.")
    packed = decode_shard(data)
    for start in range(0, len(packed.tokens), ROWS_AT_ONCE):
        part = packed.slice(start, start + ROWS_AT_ONCE)
        texts = [
            tokenizer.decode(piece)
            for row, lengths in zip(part.tokens, part.lengths, strict=True)
            for piece in np.split(row[: sum(lengths)], np.cumsum(lengths)[:-1])
        ]
        yield pa.chunked_array([pa.array(texts, pa.large_string())])
