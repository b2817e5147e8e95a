"""The last stages for pairs: those that are kept come in, tables for the tasks that write shards go out.

As in `pipeline`, whose writer they end in: captions are part of what the tokenizer is trained on, and
each partition is encoded by the task that will write it. An image is written to the staging folder
twice, when it is prepared and when it meets the others of its part, and is never decoded in between.
A pair that turns out to be longer than a sample is dropped here, for only the tokenizer can tell.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from panthalassa import config
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.components import digests_of, positions_of
from panthalassa.corpus.funnel import Example, Tally
from panthalassa.corpus.pair_selection import PairCensus, with_group
from panthalassa.corpus.pairs import ids_of_pair
from panthalassa.corpus.parts import INDEXED
from panthalassa.corpus.pipeline import (
    TOKENIZER_BYTES,
    Division,
    by_reader,
    tokenizer_of,
)
from panthalassa.corpus.selection import COUNTED, Census
from panthalassa.corpus.staging import COMPUTING, Stage, Tables, numbered

TOO_LONG = "caption-too-long"
LENGTHS = ("characters", "bytes")


@dataclass(frozen=True)
class KeptPairs:
    """The pairs of the partitions of stage `documents` that stage `kept` keeps."""

    documents: Stage
    kept: Stage
    partitions: int

    def tables(self, number: int, images: bool = False) -> Iterator[pa.Table]:
        """Those of a partition, with the columns of `pairs`, `group` and `position`, and if asked for
        their `image`."""
        kept = self.kept.tables(number, "kept")
        pictures = self.documents.tables(number, "pictures") if images else None
        for pairs, decided in zip(self.documents.tables(number, "pairs"), kept, strict=True):
            table = with_group(pairs, decided)
            if pictures:
                table = table.append_column("image", next(pictures)["image"])
            table = table.filter(decided["kept"])
            positions = positions_of(digests_of(table["hash"]))
            yield table.append_column("position", pa.array(positions))


def captions(kept: KeptPairs, census: Census, corpus: config.Corpus) -> Iterator[str]:
    """The captions of the train split, or a sample of them where all text is large, for a tokenizer."""
    shares = sample_shares(census.train_bytes(), TOKENIZER_BYTES, corpus.tokenizer_alpha)
    sample = partial(_sample, kept=kept, shares=shares)
    texts = numbered(kept.partitions).map_batches(sample, batch_size=1, **COMPUTING)
    return (row["text"] for row in texts.iter_rows())


def _sample(batch: pa.Table, kept: KeptPairs, shares: dict[str, float]) -> Iterator[pa.Table]:
    for table in kept.tables(batch["number"][0].as_py()):
        position = table["position"].to_numpy()
        groups = (group.partition("/") for group in table["group"].to_pylist())
        below = [
            int(shares.get(domain, 0) * 2**32) if split == "train" else 0
            for split, _, domain in groups
        ]
        yield table.select(["text"]).filter(pa.array(position % 2**32 < np.array(below)))


@dataclass(frozen=True)
class PairEncoder:
    """Encodes a partition's pairs with images that take so many `tokens`."""

    kept: KeptPairs
    vocabulary: bytes
    division: Division
    tokens: int
    sequence_length: int

    def __call__(self, number: int, partition: str) -> Tables:
        """The pairs by the task that reads them, with their `ids` and `image`; the note has the tally of
        those that do not fit."""
        tally, dropped = Tally(), Counter[str]()
        tables = self.kept.tables(number, images=True)
        yield from by_reader(
            (self._encoded(table, tally, dropped) for table in tables), self.division
        )
        return json.dumps([tally.encode(), dropped])

    def _encoded(self, table: pa.Table, tally: Tally, dropped: Counter[str]) -> pa.Table:
        tokenizer = tokenizer_of(self.vocabulary)
        texts = table["text"].to_pylist()
        ids = [ids_of_pair(tokenizer, text, self.tokens) for text in texts]
        lengths = np.array([len(pair) for pair in ids], dtype=np.int64)
        fits = lengths <= self.sequence_length
        for row in np.flatnonzero(~fits).tolist():
            self._drop(table.slice(row, 1), int(lengths[row]), tally, dropped)
        table, ids = table.filter(pa.array(fits)), [ids[row] for row in np.flatnonzero(fits)]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        flat = np.concatenate([np.zeros(0, dtype=np.int32), *ids])
        placed = zip(table["position"].to_pylist(), table["group"].to_pylist(), strict=True)
        parts = [position % self.division.parts[group] for position, group in placed]
        return (
            table.select([*INDEXED, "group", "image"])
            .append_column("part", pa.array(parts, pa.int64()))
            .append_column("ids", pa.LargeListArray.from_arrays(offsets, flat))
        )

    def _drop(self, row: pa.Table, length: int, tally: Tally, dropped: Counter[str]) -> None:
        pair = row.drop_columns(["image"]).to_pylist()[0]
        example = Example(
            place=f"{pair['source']}/{pair['place']}",
            reason=f"{length} tokens with its image, more than {self.sequence_length} of a sample",
            text=pair["begins"],
        )
        tally.add("rule", pair["domain"], size=pair["bytes"], rule=TOO_LONG, example=example)
        counts = (1, *(pair[name] for name in LENGTHS))
        for name, count in zip(COUNTED, counts, strict=True):
            dropped[f"{name}:{pair['group']}"] += count


def without_unfit(pairs: PairCensus, notes: Iterable[str], tally: Tally) -> Census:
    """What is left of the census by the notes of encoding, whose drops are added to the tally."""
    dropped = Counter[str]()
    for told, unfit in map(json.loads, notes):
        tally.merge(told)
        dropped.update(unfit)
    counts: dict[str, Any] = {
        name: Counter(
            {
                group: left
                for group, count in getattr(pairs.census, name).items()
                if (left := count - dropped[f"{name}:{group}"])
            }
        )
        for name in COUNTED
    }
    return Census(pairs.census.held_out_below, **counts)
