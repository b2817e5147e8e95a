"""Samples from shards: a Ray Data stream of a rank's own batches, in order.

Positions go in, through `Order` to rows, and out come the samples of one step after the other. The
stream runs over *positions*, not files: a task fetches the rows of a run of positions, wherever the
cluster has CPUs, and Ray Data hands the blocks over in order. A shard is compared with its hash when a
process first touches it. Each sample comes with the hash of where it was found, for the ledger.

Images are decoded in these tasks too, so that no training process ever does. Between processes those of
a sample are one binary value, its pixels.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data.block import BlockAccessor

from panthalassa.cluster import mendable
from panthalassa.config import Stream
from panthalassa.corpus.images import BadImage
from panthalassa.corpus.manifest import Images, Manifest
from panthalassa.errors import ShardError
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Piece
from panthalassa.stream.images import (
    bytes_of,
    decode,
    from_arrow,
    positions_of,
    room,
    to_arrow,
)
from panthalassa.stream.ledger import Limbs, SampleHashes
from panthalassa.stream.order import Location
from panthalassa.stream.partition import Partition
from panthalassa.stream.row_group import PADDING as PADDING
from panthalassa.stream.row_group import Tokens as Tokens
from panthalassa.stream.row_group import read_row_group

BLOCK_BYTES = 1 << 26
"""Of samples at most: what Ray Data does for a block takes as long whatever is in it."""
TASK_BYTES = 1 << 20
"""Of samples at least, where there are enough: a task takes milliseconds to start."""
SHORTEST, GROWTH = 16, 4
"""The first segment is so much shorter than later ones, and each so many times as long as the last."""
BYTES_PER_TOKEN = 6
"""Of a sample on its way: its token, and its document within the row with whether it counts."""
READ_CPUS = 0.25
BATCHES_AHEAD = 2
STAY_SECONDS = 60.0

_owned: ray.ObjectRef[None] | None = None
_leaving: threading.Timer | None = None


@dataclass(frozen=True)
class Samples:
    """tokens: int32 [n, sequence]; documents: int32 [n, sequence], which document of its row a token
    belongs to, or PADDING; counted: bool [n, sequence], whether a token counts in the loss when it is
    predicted, as each does in pre-training; padding and images never do. images: uint8 [images, size,
    size, 3], those of all samples in their order; None where the corpus has none at all."""

    tokens: Tokens
    documents: Tokens
    counted: NDArray[np.bool_]
    images: NDArray[np.uint8] | None = None

    @classmethod
    def of_text(cls, tokens: Tokens, documents: Tokens) -> "Samples":
        """Samples in which every token counts."""
        return cls(tokens, documents, documents != PADDING)

    @classmethod
    def unmarked(cls, tokens: Tokens, marked: Tokens) -> "Samples":
        """Inverse of `marked`."""
        counted = marked >= 0
        return cls(tokens, np.where(counted, marked, -2 - marked).astype(np.int32), counted)

    @property
    def marked(self) -> Tokens:
        """`documents` and `counted` in one array: a token of document d that does not count has
        -2 - d, which leaves padding as it is."""
        return np.where(self.counted, self.documents, -2 - self.documents)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def has_target(self) -> NDArray[np.bool_]:
        """Whether the token behind each [n, sequence - 1] belongs to the same document, and counts."""
        same: NDArray[np.bool_] = self.documents[:, :-1] == self.documents[:, 1:]
        return same & self.counted[:, 1:]

    @property
    def targets(self) -> int:
        """Positions that count in the loss."""
        return int(self.has_target.sum())


def no_samples(sequence_length: int, images: Images | None = None) -> Samples:
    """None, of a corpus with such `images`."""
    empty = np.empty((0, sequence_length), np.int32)
    return replace(Samples.of_text(empty, empty), images=room(images) if images else None)


@dataclass(frozen=True)
class ShardReader:
    """Reads the samples of a corpus."""

    cache: ShardCache
    manifest: Manifest
    quarantine: bool = False
    """Whether samples that can not be read become padding, and not an error."""

    @cached_property
    def hashes(self) -> SampleHashes:
        return SampleHashes(self.manifest.shards)

    def fetch(self, location: Location, sequence_length: int) -> Samples:
        """The samples at `location`. Raises CorpusError for a missing or rotten shard."""
        return replace(self, quarantine=False).fetch_readable(location, sequence_length)[0]

    def fetch_readable(
        self, location: Location, sequence_length: int
    ) -> tuple[Samples, NDArray[np.bool_]]:
        """The samples at `location`, and which of them [n] could be read.

        Raises CorpusError for a missing or rotten shard, when there is no quarantine.
        """
        shape = (len(location), sequence_length)
        tokens, documents = np.zeros(shape, np.int32), np.full(shape, PADDING, np.int32)
        counted = np.zeros(shape, bool)
        files: list[list[bytes]] = [[] for _ in range(len(location))]
        whole = np.ones(len(location), bool)
        places = np.stack((location.shard, location.row_group), axis=1)
        groups, group_of = np.unique(places, axis=0, return_inverse=True)
        for number, (shard, group) in enumerate(groups.tolist()):
            here = np.flatnonzero(group_of.reshape(-1) == number)
            try:
                rows = read_row_group(self.cache, self.manifest.shards[shard], group)
            except ShardError:
                if not self.quarantine:
                    raise
                whole[here] = False
                continue
            columns = location.part[here, None] * sequence_length + np.arange(sequence_length)
            cut = location.row[here, None], columns
            tokens[here], documents[here] = rows.tokens[cut], rows.documents[cut]
            counted[here] = rows.counted[cut]
            if rows.images is not None:
                assert sequence_length == rows.tokens.shape[1], "a row with images is never cut"
                for sample in here:
                    files[sample] = rows.images[location.row[sample]].as_py()
        samples = Samples(tokens, documents, counted)
        if self.manifest.images:
            images = self._decode(self.manifest.images, location, files, samples, whole)
            samples = replace(samples, images=images)
        return samples, whole

    def _decode(
        self,
        kind: Images,
        location: Location,
        files: list[list[bytes]],
        samples: Samples,
        whole: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """The images of samples from their files; a sample that has another turns to padding, or
        ShardError is raised."""
        images, end = room(kind, sum(map(len, files))), 0
        for sample, positions in enumerate(positions_of(samples.tokens).tolist()):
            try:
                end += decode(files[sample], positions, kind, images[end:])
            except BadImage as error:
                if not self.quarantine:
                    shard = self.manifest.shards[location.shard[sample]]
                    raise ShardError(
                        f"shard {self.cache.storage.uri}/{shard.path}: row {location.row[sample]} of "
                        f"row group {location.row_group[sample]}: {error}. Prepare the corpus anew, or "
                        "leave such samples out with the key stream.on_bad_shard=quarantine."
                    ) from error
                whole[sample] = False
                samples.tokens[sample], samples.documents[sample] = 0, PADDING
                samples.counted[sample] = False
        return images[:end]


@dataclass(frozen=True)
class Batch:
    """What a rank takes of one step."""

    samples: Samples
    """Those that could not be read are padding."""
    read: int
    """How many could be read."""
    limbs: Limbs
    """The sum of their hashes [4]."""
    unreadable: list[int]
    """Which could not, counted in the global batch."""
    image_samples: int = 0
    """How many of those that could be read are from shards with images."""


def open_stream(
    reader: ShardReader,
    pieces: Sequence[Piece],
    dp_size: int,
    dp_rank: int,
    settings: Stream,
    not_on: Sequence[str] = (),
) -> Iterator[Batch]:
    """A rank's part of each step of `pieces`, in order.

    not_on: nodes (Ray's ids) that nothing is read on. Starts at once. Raises the PanthalassaError of a
    task that could not read.
    """
    streams = (
        _open(reader, segment, dp_size, dp_rank, settings, not_on)
        for piece in pieces
        for segment in segments(
            piece, dp_size, settings.ahead_megabytes * 1e6 / 2, reader.manifest.images
        )
    )
    return _one_after_the_other(streams)


def segments(
    piece: Piece, dp_size: int, most_bytes: float, images: Images | None = None
) -> Iterator[Piece]:
    """Cut a piece into some of so many bytes a rank, or of a step when that is larger; `images`, those
    of the corpus, count as pixels, by how many a sample has in the mean. The first are shorter, for
    somebody waits for them: a task hands over what it has read when it is read whole, or BLOCK_BYTES.

    Ray Data reads a segment without a pause. If it had to wait for the loop instead, its scheduler would
    spin in this process (Ray 2.60) and hold the interpreter: small steps take several times as long.
    """
    phase, steps = piece.phase, piece.steps
    samples = -(-phase.global_batch // dp_size)
    most = max(1, int(most_bytes / (samples * sample_bytes(piece, images))))
    first, length = 0, max(1, most // SHORTEST)
    while first < len(steps):
        yield replace(piece, steps=steps[first : first + length])
        first, length = first + length, min(length * GROWTH, most)


def sample_bytes(piece: Piece, images: Images | None) -> float:
    """Bytes that a sample of the piece takes on its way, in the mean."""
    pixels = piece.order.images_per_sample * bytes_of(images) if images else 0.0
    return piece.phase.sequence_length * BYTES_PER_TOKEN + pixels


def _one_after_the_other(streams: Iterator[Iterator[Batch]]) -> Iterator[Batch]:
    """The items of streams that have some; each is opened with the first item of the one ahead of it."""
    following = next(streams, None)

    def items() -> Iterator[Batch]:
        nonlocal following
        while stream := following:
            first, following = next(stream), next(streams, None)
            yield first
            yield from stream

    return items()


def _open(
    reader: ShardReader,
    segment: Piece,
    dp_size: int,
    dp_rank: int,
    settings: Stream,
    not_on: Sequence[str],
) -> Iterator[Batch]:
    length, steps = segment.phase.sequence_length, segment.steps
    partition = Partition(segment.phase.global_batch, dp_size, dp_rank)
    images = reader.manifest.images
    if partition.samples == 0:
        nothing = Batch(no_samples(length, images), 0, np.zeros(4, np.int64), [])
        return iter([nothing] * len(steps))

    least, block = (
        max(1, int(size / sample_bytes(segment, images))) for size in (TASK_BYTES, BLOCK_BYTES)
    )
    tasks = _tasks(len(steps) * partition.samples, least, settings.read_tasks)

    def read(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        _stay()
        for first in range(task["first"][0], task["end"][0], block):
            step, sample = partition.steps(np.arange(first, min(first + block, task["end"][0])))
            location = segment.order.locate(segment.positions(steps.start + step, sample))
            samples, whole = reader.fetch_readable(location, length)
            paired = segment.order.has_images[location.domain]
            columns: dict[str, Any] = {
                "tokens": samples.tokens,
                "documents": samples.marked.astype(np.int16 if length < 1 << 15 else np.int32),
                "account": np.column_stack((whole, whole & paired, reader.hashes.limbs(location))),
            }
            if images and samples.images is not None:
                counts = positions_of(samples.tokens) // images.tokens
                columns["images"] = to_arrow(samples.images, counts, images)
            yield columns

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.downstream_capacity_backpressure_ratio = None  # waits at half of a small object store
    # Segments bound the memory. A stream left without a share of CPUs would spin until it has one.
    context.op_resource_reservation_enabled = False
    samples = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        read,
        batch_size=1,
        num_cpus=READ_CPUS,
        compute=ray.data.TaskPoolStrategy(settings.read_tasks),
        label_selector={"ray.io/node-id": f"!in({','.join(not_on)})"} if not_on else None,
    )
    batches = samples.iter_batches(
        batch_size=partition.samples, batch_format="pyarrow", prefetch_batches=BATCHES_AHEAD
    )
    return _Ahead(_batch(table, partition.start, images) for table in batches)


def _tasks(total: int, least: int, most: int) -> list[dict[str, int]]:
    """[0, total) in at most so many ranges, of at least so many each where there are as many."""
    size = max(least, -(-total // most))
    return [{"first": k, "end": min(k + size, total)} for k in range(0, total, size)]


def _stay() -> None:
    """Have Ray keep this process for tasks of the next STAY_SECONDS: one that owns an object is not
    ended when idle.

    On a node whose CPUs are all taken, it would be after a second, and the next task would begin with
    seconds of imports. A process that stayed for good would take the place of others that are idle.
    """
    global _owned, _leaving
    if _leaving:
        _leaving.cancel()
    _owned = _owned or ray.put(None)
    _leaving = threading.Timer(STAY_SECONDS, _let_go)
    _leaving.daemon = True
    _leaving.start()


def _let_go() -> None:
    global _owned
    _owned = None


def _batch(table: pa.Table, first: int, images: Images | None) -> Batch:
    """A step's batch from the columns of `read`; `first` is its first sample in the global batch."""
    columns = BlockAccessor.for_block(table).to_numpy(["tokens", "documents", "account"])
    assert isinstance(columns, dict)
    account = columns["account"]
    whole = account[:, 0] == 1
    samples = Samples.unmarked(columns["tokens"], columns["documents"])
    if images:
        samples = replace(samples, images=from_arrow(table["images"], images))
    return Batch(
        samples=samples,
        read=int(whole.sum()),
        limbs=account[whole, 2:].sum(axis=0),
        unreadable=(first + np.flatnonzero(~whole)).tolist(),
        image_samples=int(account[:, 1].sum()),
    )


class _Ahead:
    """Runs a Ray Data iterator in a thread, from now on, a few batches before they are asked for."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=BATCHES_AHEAD)
        threading.Thread(target=self._pull, args=(batches,), daemon=True).start()

    def _pull(self, batches: Iterable[Batch]) -> None:
        end: BaseException = StopIteration()
        try:
            for batch in batches:
                self._ready.put(batch)
        except Exception as error:
            end = mendable(error) or error
        self._ready.put(end)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item
