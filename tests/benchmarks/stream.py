"""The stream's speed against bare readers of the same rows, from local shards and from S3.

`make bench-stream`. Two ranks that only read, in turn with two that run a bare
`ray.data.range().map_batches()` which reads the same row groups with pyarrow alone: no hashes, no
cache, no ledger, no errors that people can read. Beside it, without Ray: a bare pyarrow loop in one
process, and torch's DataLoader with two workers. Prints tokens a second and the medians of the ratios.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from panthalassa.cluster import connected
from panthalassa.config import Cluster, Stream
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.pack import Packed
from panthalassa.corpus.shards import write_shard
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Curriculum, Piece
from panthalassa.stream.order import Integers
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import ShardReader, open_stream

sys.path.insert(0, str(Path(__file__).parents[1]))
from phases import bare_manifest, phase
from s3 import BUCKET, s3_server

LENGTH, BATCH, RANKS = 256, 64, 2
SHARDS, ROWS, GROUP = 16, 2048, 32
BLOCK_TOKENS = 1 << 20
"""Of a block of bare Ray Data, which reads half as fast with an eighth of it."""
WARM_UP = 0.2
"""Share of the steps that is not measured: a stream reads ahead before its first batch is asked for."""
TARGET = 0.9


def write_corpus(storage: Storage) -> Manifest:
    draw = np.random.default_rng(0)
    shards = []
    for number in range(SHARDS):
        tokens = draw.integers(3, 4096, (ROWS, LENGTH), dtype=np.int32)
        packed = Packed(tokens, [[LENGTH]] * ROWS, [[0]] * ROWS)
        path, domain = f"train/d/{number:05d}.parquet", "d"
        shards.append(write_shard(storage, path, "train", domain, packed, GROUP))
    return bare_manifest(shards, LENGTH)


def piece_of(manifest: Manifest, steps: int) -> Piece:
    only = phase(0, corpus=manifest.fingerprint, sequence_length=LENGTH, global_batch=BATCH)
    (piece,) = Curriculum([only], manifest).pieces(range(steps))
    return piece


def bare_rows(storage: Storage, manifest: Manifest, piece: Piece, positions: Integers) -> Any:
    """The tokens at `positions`, read as simply as can be: each row group once a call."""
    place = piece.order.locate(positions)
    tokens = np.empty((len(positions), LENGTH), np.int32)
    files: dict[int, pq.ParquetFile] = {}
    groups: dict[tuple[int, int], np.ndarray] = {}
    rows = zip(place.shard.tolist(), place.row_group.tolist(), place.row.tolist(), strict=True)
    for i, (shard, group, row) in enumerate(rows):
        if (shard, group) not in groups:
            if shard not in files:
                path = storage.path(manifest.shards[shard].path)
                files[shard] = pq.ParquetFile(storage.filesystem.open_input_file(path))
            column = files[shard].read_row_group(group, ["tokens"])["tokens"].combine_chunks()
            groups[shard, group] = column.flatten().to_numpy().reshape(len(column), LENGTH)
        tokens[i] = groups[shard, group][row]
    return tokens


def positions_of(piece: Piece, partition: Partition, samples: Integers) -> Integers:
    return piece.positions(*partition.steps(samples))


def ours(
    storage: Storage, manifest: Manifest, piece: Piece, rank: int, cache: str
) -> Iterator[Any]:
    reader = ShardReader(ShardCache(Path(cache), 1 << 40, storage), manifest)
    return open_stream(reader, [piece], RANKS, rank, Stream())


def bare(
    storage: Storage, manifest: Manifest, piece: Piece, rank: int, cache: str
) -> Iterator[Any]:
    partition = Partition(BATCH, RANKS, rank)

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        positions = positions_of(piece, partition, batch["id"])
        return {"tokens": bare_rows(storage, manifest, piece, positions)}

    block, total = BLOCK_TOKENS // LENGTH, len(piece.steps) * partition.samples
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    data = ray.data.range(total, override_num_blocks=-(-total // block)).map_batches(
        read, batch_size=block, num_cpus=0.25, compute=ray.data.TaskPoolStrategy(2)
    )
    return iter(data.iter_batches(batch_size=partition.samples, batch_format="numpy"))


@ray.remote(num_cpus=0.5)
class Rank:
    """A rank that only reads."""

    def seconds(
        self, warm_up: int, open_it: Callable[..., Iterator[Any]], *arguments: Any
    ) -> tuple[float, float]:
        """When the warm-up and the last batch were over, in seconds since 1970."""
        start = 0.0
        for number, _ in enumerate(open_it(*arguments)):
            if number == warm_up:
                start = time.time()
        return start, time.time()


def ranks_speed(
    open_it: Callable[..., Iterator[Any]],
    storage: Storage,
    manifest: Manifest,
    piece: Piece,
    cache: str,
) -> float:
    """Tokens a second of all ranks together."""
    actors, warm_up = [Rank.remote() for _ in range(RANKS)], int(WARM_UP * len(piece.steps))
    calls = [
        actor.seconds.remote(warm_up, open_it, storage, manifest, piece, rank, cache)
        for rank, actor in enumerate(actors)
    ]
    spans = ray.get(calls)
    for actor in actors:
        ray.kill(actor)
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return (len(piece.steps) - warm_up - 1) * BATCH * LENGTH / seconds


class Rows(IterableDataset):  # type: ignore[type-arg]
    """The same rows for a DataLoader: every worker takes each second step."""

    def __init__(self, storage: Storage, manifest: Manifest, piece: Piece) -> None:
        self.storage, self.manifest, self.piece = storage, manifest, piece

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in self.piece.steps[first::stride]:
            positions = np.arange(step * BATCH, (step + 1) * BATCH)
            yield bare_rows(self.storage, self.manifest, self.piece, positions)


def alone_speed(batches: Iterator[Any], steps: int) -> float:
    start, warm_up = 0.0, int(WARM_UP * steps)
    for number, _ in enumerate(batches):
        if number == warm_up:
            start = time.perf_counter()
    return (steps - warm_up - 1) * BATCH * LENGTH / (time.perf_counter() - start)


def compare(name: str, storage: Storage, rounds: int, steps: int, console: Console) -> None:
    manifest = write_corpus(storage)
    piece, ratios = piece_of(manifest, steps), []
    for number in range(rounds + 1):
        speeds = {}
        # Who comes second finds Ray's workers started: they take turns, and round 0 does not count.
        for side in (ours, bare) if number % 2 else (bare, ours):
            with tempfile.TemporaryDirectory() as cache:
                speeds[side] = ranks_speed(side, storage, manifest, piece, cache)
        if number:
            ratios.append(speeds[ours] / speeds[bare])
        told = "" if number else ", to warm up"
        console.print(
            f"{name}: stream {speeds[ours]:,.0f}, bare Ray Data {speeds[bare]:,.0f} tokens/s{told}"
        )
    console.print(
        f"{name}: median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}); target {TARGET}"
    )
    rows = Rows(storage, manifest, piece)
    loader = DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    console.print(
        f"{name}: bare pyarrow, one process {alone_speed(iter(rows), steps):,.0f}, torch's "
        f"DataLoader, two workers {alone_speed(iter(loader), steps):,.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--steps", type=int, help="5000, or 1000 from S3, where bare Ray Data is slow"
    )
    parser.add_argument("--places", nargs="+", choices=["local", "S3"], default=["local", "S3"])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(
        AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1"
    )
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "buckets") as server:
        os.environ["AWS_ENDPOINT_URL"] = server.url
        with connected(Cluster(workers=RANKS)):
            for name in arguments.places:
                place = {"local": f"{folder}/corpus", "S3": f"s3://{BUCKET}/corpus"}[name]
                steps = arguments.steps or {"local": 5000, "S3": 1000}[name]
                compare(name, open_storage(place), arguments.rounds, steps, console)


if __name__ == "__main__":
    main()
