"""Streams over a real corpus on disk: the samples of the order, in order, or the shard that is ill."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from phases import bare_manifest, phase

from panthalassa.config import Stream
from panthalassa.corpus.manifest import Manifest, Shard
from panthalassa.errors import CorpusError, PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.stream import reader
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Curriculum, Phase
from panthalassa.stream.order import Location, Mixture, Order, evenly
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import (
    BYTES_PER_TOKEN,
    PADDING,
    Batch,
    Samples,
    ShardReader,
    _tasks,
    open_stream,
    segments,
)

LENGTH = 16
GLOBAL_BATCH = 7
SHARDS = {
    "train/aa/0": [5, 5, 2],
    "train/aa/1": [4],
    "train/bb/0": [3, 3],
    "held_out/aa/0": [3],
}


@dataclass(frozen=True)
class Corpus:
    folder: Path
    manifest: Manifest
    tokens: dict[int, np.ndarray]
    """By number of shard [rows, LENGTH]; no token but the padding occurs twice."""
    documents: dict[int, np.ndarray]

    def reader(self, quarantine: bool = False) -> ShardReader:
        cache = ShardCache(self.folder / "cache", 1 << 20, open_storage(str(self.folder)))
        return ShardReader(cache, self.manifest, quarantine)

    def order(self, sequence_length: int = LENGTH) -> Order:
        return Order(self.manifest, sequence_length, Mixture(1.5), 3)

    def curriculum(self, *later: Phase) -> Curriculum:
        fingerprint = self.manifest.fingerprint
        first = phase(0, corpus=fingerprint, seed=3, temperature=1.5, global_batch=GLOBAL_BATCH)
        return Curriculum([first, *later], self.manifest)

    def expected(self, positions: np.ndarray, sequence_length: int = LENGTH) -> Samples:
        """What stands at `positions`, taken from what was written, without the reader."""
        place = self.order(sequence_length).locate(positions)
        tokens, documents = [], []
        for shard, group, row, part in zip(
            place.shard, place.row_group, place.row, place.part, strict=True
        ):
            at = sum(self.manifest.shards[shard].row_groups[:group]) + row
            cut = slice(part * sequence_length, (part + 1) * sequence_length)
            tokens.append(self.tokens[shard][at][cut])
            documents.append(self.documents[shard][at][cut])
        return Samples.of_text(np.array(tokens), np.array(documents))


def lengths_of(row: int) -> list[int]:
    """Full rows of one and of several documents, and rows that end in padding."""
    return [[16], [1, 15], [5, 6, 5], [3], [7, 1, 1]][row % 5]


def write_corpus(folder: Path) -> Corpus:
    """Shards by hand, in the format that the manifest's module describes."""
    shards, every_token, every_document = [], {}, {}
    next_token = 100
    for number, (name, groups) in enumerate(SHARDS.items()):
        rows = sum(groups)
        lengths = [lengths_of(row) for row in range(rows)]
        tokens = np.arange(next_token, next_token + rows * LENGTH, dtype=np.int32)
        tokens, next_token = tokens.reshape(rows, LENGTH), next_token + rows * LENGTH
        documents = np.full((rows, LENGTH), PADDING)
        for row, inside in enumerate(lengths):
            documents[row, : sum(inside)] = np.repeat(np.arange(len(inside)), inside)
            tokens[row, sum(inside) :] = 2
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), LENGTH),
                "lengths": pa.array(lengths, pa.list_(pa.int32())),
                "offsets": pa.array([[0] * len(row) for row in lengths], pa.list_(pa.int32())),
            }
        )
        starts = np.cumsum([0, *groups])
        with pq.ParquetWriter(path, table.schema) as writer:
            for start, count in zip(starts[:-1], groups, strict=True):
                writer.write_table(table.slice(start, count), row_group_size=count)
        split, domain, _ = name.split("/")
        shards.append(
            Shard.model_validate(
                {
                    "path": f"{name}.parquet",
                    "domain": domain,
                    "split": split,
                    "rows": rows,
                    "tokens": sum(map(sum, lengths)),
                    "row_groups": groups,
                    "size": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
            )
        )
        every_token[number], every_document[number] = tokens, documents
    manifest = bare_manifest(shards, LENGTH)
    return Corpus(folder, manifest, every_token, every_document)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def stream(
    corpus: Corpus, steps: range, dp_size: int = 1, rank: int = 0, reader: ShardReader | None = None
) -> Iterator[Batch]:
    pieces = list(corpus.curriculum().pieces(steps))
    return open_stream(reader or corpus.reader(), pieces, dp_size, rank, Stream(ahead_megabytes=1))


def read(corpus: Corpus, dp_size: int, rank: int, steps: range) -> list[Samples]:
    return [batch.samples for batch in stream(corpus, steps, dp_size, rank)]


def assert_same(found: list[Samples], expected: list[Samples]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.documents, other.documents)


@pytest.mark.parametrize("dp_size", [1, 2, 3])
def test_the_ranks_together_read_the_order_step_for_step(
    ray_cluster: None, corpus: Corpus, dp_size: int
) -> None:
    """Over several epochs of each domain; none lost, none twice, each rank its share."""
    steps = range(0, 12)
    by_rank = [read(corpus, dp_size, rank, steps) for rank in range(dp_size)]
    together = []
    for step in steps:
        parts = [samples[step] for samples in by_rank]
        sizes = [Partition(GLOBAL_BATCH, dp_size, rank).samples for rank in range(dp_size)]
        assert [len(part) for part in parts] == sizes
        assert {part.tokens.dtype for part in parts} == {np.dtype(np.int32)}
        tokens = np.concatenate([part.tokens for part in parts])
        together.append(Samples.of_text(tokens, np.concatenate([part.documents for part in parts])))
    positions = np.arange(12 * GLOBAL_BATCH).reshape(12, GLOBAL_BATCH)
    assert_same(together, [corpus.expected(step) for step in positions])


def test_a_stream_that_starts_later_gives_the_tail_of_the_whole(
    ray_cluster: None, corpus: Corpus
) -> None:
    """What a resumed run sees is what the first one would have seen, on other ranks as well."""
    whole = read(corpus, 2, 1, range(0, 9))
    assert_same(read(corpus, 2, 1, range(4, 9)), whole[4:])
    alone = read(corpus, 1, 0, range(4, 9))
    start = Partition(GLOBAL_BATCH, 2, 1).start
    assert_same([Samples.of_text(s.tokens[start:], s.documents[start:]) for s in alone], whole[4:])


def test_blocks_that_are_read_slowly_keep_their_place(
    ray_cluster: None, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small blocks, of which the tasks that read later ones are done sooner."""
    bytes_of_three = 3 * LENGTH * BYTES_PER_TOKEN
    monkeypatch.setattr("panthalassa.stream.reader.BLOCK_BYTES", bytes_of_three)
    monkeypatch.setattr("panthalassa.stream.reader.TASK_BYTES", bytes_of_three)

    class SlowAtFirst(ShardReader):
        def fetch_readable(self, location: Location, sequence_length: int) -> Any:
            samples, whole = super().fetch_readable(location, sequence_length)
            time.sleep(1.0 if first in samples.tokens else 0.0)
            return samples, whole

    expected = [
        corpus.expected(step)
        for step in np.arange(GLOBAL_BATCH, 13 * GLOBAL_BATCH).reshape(12, GLOBAL_BATCH)
    ]
    first = expected[0].tokens[0, 0]
    reader = SlowAtFirst(corpus.reader().cache, corpus.manifest)
    found = stream(corpus, range(1, 13), reader=reader)
    assert_same([batch.samples for batch in found], expected)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 9), st.floats(1, 1e5))
def test_segments_are_all_steps_in_order_and_no_larger_than_asked_for(
    corpus: Corpus, first: int, count: int, dp_size: int, most_bytes: float
) -> None:
    for piece in corpus.curriculum().pieces(range(first, first + count)):
        cut = list(segments(piece, dp_size, most_bytes))
        assert [step for segment in cut for step in segment.steps] == list(piece.steps)
        a_step = -(-GLOBAL_BATCH // dp_size) * LENGTH * BYTES_PER_TOKEN
        assert all(len(segment.steps) * a_step <= max(most_bytes, a_step) for segment in cut)


def test_a_long_stream_is_whole_and_rests_while_nobody_asks(
    ray_cluster: None, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in segments; Ray Data's scheduler does not spin beside the loop between two of them."""
    monkeypatch.setattr("panthalassa.stream.reader.BLOCK_BYTES", 64 * LENGTH * BYTES_PER_TOKEN)
    found = stream(corpus, range(200_000))
    batches = [next(found)]
    until = time.monotonic() + 60
    while any(thread.name.startswith("StreamingExecutor") for thread in threading.enumerate()):
        assert time.monotonic() < until, "it waits for the loop"
        time.sleep(0.1)
    batches += islice(found, 1999)
    positions = np.arange(2000 * GLOBAL_BATCH)
    assert_same(
        [batch.samples for batch in batches], split(corpus.expected(positions), GLOBAL_BATCH)
    )


def test_a_rank_without_samples_has_empty_steps(corpus: Corpus) -> None:
    """More ranks than samples: the step's collectives need it all the same."""
    assert Partition(GLOBAL_BATCH, 9, 8).samples == 0
    found = read(corpus, 9, 8, range(3, 6))
    assert [step.tokens.shape for step in found] == [(0, LENGTH)] * 3
    assert [step.documents.shape for step in found] == [(0, LENGTH)] * 3


def test_a_stream_that_has_ended_stays_ended(ray_cluster: None, corpus: Corpus) -> None:
    found = stream(corpus, range(0, 1))
    assert len(next(found).samples) == GLOBAL_BATCH
    for _ in range(3):
        assert next(found, None) is None


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "is corrupt"),
        (truncate, "is corrupt"),
        (Path.unlink, "is listed in manifest.json but does not exist"),
    ],
)
def test_an_ill_shard_is_named_with_the_remedy(
    ray_cluster: None, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """Out of the stream comes one line to act on, not the traceback of a task."""
    corpus = write_corpus(tmp_path)
    damage(tmp_path / "train/bb/0.parquet")
    found = stream(corpus, range(0, 5))
    with pytest.raises(PanthalassaError) as refusal:
        list(found)
    message = str(refusal.value)
    assert f"shard {tmp_path}/train/bb/0.parquet {reason}" in message
    assert "Restore the file or prepare the corpus anew." in message
    assert "Traceback" not in message
    assert "ray::" not in message
    assert "UDF" not in message
    assert next(found, None) is None


def test_with_a_quarantine_the_samples_of_an_ill_shard_are_padding(
    ray_cluster: None, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path)
    flip_a_bit(tmp_path / "train/bb/0.parquet")
    positions = np.arange(5 * GLOBAL_BATCH)
    place, expected = corpus.order().locate(positions), corpus.expected(positions)
    ill = np.flatnonzero([corpus.manifest.shards[s].domain == "bb" for s in place.shard])
    assert 0 < len(ill) < len(positions)
    expected.tokens[ill], expected.documents[ill] = 0, PADDING
    found = list(stream(corpus, range(0, 5), reader=corpus.reader(quarantine=True)))
    assert_same([batch.samples for batch in found], split(expected, GLOBAL_BATCH))
    assert sum(batch.read for batch in found) == len(positions) - len(ill)
    unreadable = [
        step * GLOBAL_BATCH + sample
        for step, batch in enumerate(found)
        for sample in batch.unreadable
    ]
    assert unreadable == ill.tolist()


def split(samples: Samples, size: int) -> list[Samples]:
    starts = range(0, len(samples), size)
    return [
        Samples.of_text(samples.tokens[s:][:size], samples.documents[s:][:size]) for s in starts
    ]


def test_an_ill_shard_does_not_matter_to_who_does_not_read_it(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    (tmp_path / "train/bb/0.parquet").unlink()
    found = corpus.reader().fetch(evenly(corpus.manifest, "held_out", LENGTH, 9), LENGTH)
    np.testing.assert_array_equal(found.tokens, corpus.tokens[3])
    with pytest.raises(CorpusError, match=r"train/bb/0\.parquet"):
        corpus.reader().fetch(evenly(corpus.manifest, "train", LENGTH, 99), LENGTH)


@pytest.mark.parametrize("sequence_length", [16, 8, 4])
def test_documents_are_told_apart_and_padding_from_both(
    corpus: Corpus, sequence_length: int
) -> None:
    """By the lengths alone; also in the parts of a row that is cut."""
    parts = LENGTH // sequence_length
    count = parts * sum(map(sum, SHARDS.values()))
    order = corpus.order(sequence_length)
    found = corpus.reader().fetch(order.locate(np.arange(count)), sequence_length)
    expected = corpus.expected(np.arange(count), sequence_length)
    assert_same([found], [expected])
    assert found.tokens.shape == (count, sequence_length)


def test_the_documents_of_a_row_by_hand(corpus: Corpus) -> None:
    first_group = Location(*np.array([[0, 0, 0, 0, row, 0] for row in range(5)]).T)
    assert corpus.reader().fetch(first_group, LENGTH).documents.tolist() == [
        [0] * 16,
        [0] + [1] * 15,
        [0] * 5 + [1] * 6 + [2] * 5,
        [0] * 3 + [PADDING] * 13,
        [0] * 7 + [1, 2] + [PADDING] * 7,
    ]


@given(st.integers(1, 10**9), st.integers(1, 5000), st.integers(1, 40))
def test_tasks_are_few_alike_and_not_too_small(total: int, least: int, most: int) -> None:
    tasks = _tasks(total, least, most)
    assert len(tasks) <= most
    assert tasks[0]["first"] == 0
    assert tasks[-1]["end"] == total
    sizes = [task["end"] - task["first"] for task in tasks]
    assert all(one["end"] == following["first"] for one, following in pairwise(tasks))
    assert len({*sizes[:-1]}) <= 1
    assert min(sizes[:-1], default=least) >= least
    assert 0 < sizes[-1] <= max(sizes)


def test_processes_that_read_stay_for_a_while_where_no_cpu_is_free(ray_cluster: str) -> None:
    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"FRESH": "processes"}})
    def process(seconds: float) -> int:
        reader.STAY_SECONDS = seconds
        if seconds:
            reader._stay()
        time.sleep(1)
        return os.getpid()

    @ray.remote
    class Busy:
        def ready(self) -> None: ...

    busy = Busy.options(num_cpus=ray.cluster_resources()["CPU"]).remote()
    ray.get(busy.ready.remote())
    stays, leaves, ends = ray.get([process.remote(s) for s in (60.0, 1.5, 0.0)])
    assert len({stays, leaves, ends}) == 3
    until = time.monotonic() + 30
    while psutil.pid_exists(ends) or psutil.pid_exists(leaves):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    assert psutil.pid_exists(stays)
    ray.kill(busy)
