"""Samples from shards: a Ray Data stream of a rank's own batches, in order.

Positions go in, through `Order` to rows, and out come the samples of one step after the other. The
stream runs over *positions*, not files: a task fetches the rows of a run of positions, wherever the
cluster has CPUs, and Ray Data hands the blocks over in order. A shard is compared with its hash when a
process first touches it.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from panthalassa.corpus.manifest import Manifest, Shard, verify
from panthalassa.errors import CorpusError, PanthalassaError
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.order import Location, Order
from panthalassa.stream.partition import Partition

TOKENS_PER_BLOCK = 1 << 15
MOST_BLOCKS = 2000
READ_CPUS = 0.25
BATCHES_AHEAD = 2
PADDING = -1

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Samples:
    """tokens: int32 [n, sequence]; documents: int32 [n, sequence], which document of its row a token
    belongs to, or PADDING."""

    tokens: Tokens
    documents: Tokens

    def __len__(self) -> int:
        return len(self.tokens)


def no_samples(sequence_length: int) -> Samples:
    empty = np.empty((0, sequence_length), np.int32)
    return Samples(empty, empty)


@dataclass(frozen=True)
class ShardReader:
    """Reads the samples of a corpus, `sequence_length` tokens each."""

    storage: Storage
    manifest: Manifest
    sequence_length: int

    def fetch(self, location: Location) -> Samples:
        """The samples at `location`. Raises CorpusError for a missing or rotten shard."""
        shape = (len(location.row), self.sequence_length)
        tokens, documents = np.empty(shape, np.int32), np.empty(shape, np.int32)
        places = zip(location.shard, location.row_group, location.row, location.part, strict=True)
        for i, (shard, group, row, part) in enumerate(places):
            rows = _row_group(self.storage.uri, self.manifest.shards[shard], int(group))
            piece = slice(part * self.sequence_length, (part + 1) * self.sequence_length)
            tokens[i], documents[i] = rows.tokens[row, piece], rows.documents[row, piece]
        return Samples(tokens, documents)


@lru_cache(maxsize=128)
def _row_group(uri: str, shard: Shard, group: int) -> Samples:
    storage = _verified(uri, shard)
    try:
        with storage.filesystem.open_input_file(storage.path(shard.path)) as file:
            table = pq.ParquetFile(file).read_row_group(group)
    except (OSError, pa.ArrowInvalid) as error:
        raise CorpusError(
            f"shard {uri}/{shard.path} was whole but can not be read any more: {error}. "
            "Restore the file; the same command then goes on."
        ) from error
    column = table["tokens"].combine_chunks()
    tokens = column.flatten().to_numpy().reshape(len(column), -1)
    documents = np.empty_like(tokens)
    for row, lengths in zip(documents, table["lengths"].to_pylist(), strict=True):
        ends = np.cumsum(lengths)
        row[:] = np.searchsorted(ends, np.arange(len(row)), side="right")
        row[ends[-1] :] = PADDING
    return Samples(tokens, documents)


@lru_cache(maxsize=4096)
def _verified(uri: str, shard: Shard) -> Storage:
    storage = open_storage(uri)
    verify(storage, shard)
    return storage


def open_stream(
    reader: ShardReader, order: Order, partition: Partition, steps: range, read_tasks: int
) -> Iterator[Samples]:
    """This rank's samples of each step of `steps`, one item a step.

    Starts at once, with at most `read_tasks` tasks at a time. Raises the PanthalassaError of a
    task that could not read.
    """
    if partition.samples == 0:
        return iter([no_samples(reader.sequence_length)] * len(steps))

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        positions = partition.positions(steps.start, batch["id"])
        samples = reader.fetch(order.locate(positions))
        return {"tokens": samples.tokens, "documents": samples.documents}

    total = len(steps) * partition.samples
    block = max(1, TOKENS_PER_BLOCK // reader.sequence_length)
    blocks = min(-(-total // block), MOST_BLOCKS)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    positions = ray.data.range(total, override_num_blocks=blocks)
    samples = positions.map_batches(
        read,
        batch_size=block,
        zero_copy_batch=True,
        num_cpus=READ_CPUS,
        compute=ray.data.TaskPoolStrategy(read_tasks),
    )
    batches = samples.iter_batches(
        batch_size=partition.samples, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
    )
    return _Ahead(batches)


class _Ahead:
    """Runs a Ray Data iterator in a thread, from now on, a few batches before they are asked for."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._ready: queue.Queue[Samples | BaseException] = queue.Queue(maxsize=BATCHES_AHEAD)
        threading.Thread(target=self._pull, args=(batches,), daemon=True).start()

    def _pull(self, batches: Iterable[Any]) -> None:
        end: BaseException = StopIteration()
        try:
            for batch in batches:
                self._ready.put(Samples(batch["tokens"], batch["documents"]))
        except Exception as error:
            end = _readable(error)
        self._ready.put(end)

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # every later call ends alike
            raise item
        return item


def _readable(error: BaseException) -> BaseException:
    """The PanthalassaError inside an error of Ray, or the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, PanthalassaError):
            return PanthalassaError(str(getattr(inner, "cause", inner)))
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
