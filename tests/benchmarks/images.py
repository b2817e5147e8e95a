"""The stream's speed with images against bare Pillow on the same files.

`make bench-images`. A rank that only reads, with two read tasks, in turn with two processes that do no
more than open, decode and turn into NumPy the same files, which they have in memory. Beside it, without
Ray: the reader in one process against the same loop in it, by seconds of the CPU. Prints images a second
and the medians of the ratios.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from rich.console import Console

from panthalassa import cluster
from panthalassa.config import Cluster, Stream
from panthalassa.corpus.images import prepared
from panthalassa.corpus.manifest import Images, Manifest
from panthalassa.corpus.pack import Packed
from panthalassa.corpus.shards import write_shard
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Curriculum, Piece
from panthalassa.stream.reader import BLOCK_BYTES, ShardReader, open_stream, sample_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from phases import bare_manifest, phase

BATCH, ROWS, GROUP, TASKS = 16, 512, 32, 2
PATCHES, TEXT = 4, 8
"""Positions of an image on a side, and of what is beside it."""
IMAGES_A_ROW = 16
WARM_UP = 0.2
"""Share of the steps that is not measured."""
TARGET = 0.7
AHEAD = 512
"""Megabytes of pixels: a stream that is never waited for starts a new segment every so often."""
OBJECT_STORE = 1 << 30
"""Bytes of a node's object store, so that nothing of that is spilled: a laptop's has a quarter."""


def photograph(number: int, size: int) -> bytes:
    """A file as a corpus keeps it: broad shapes, edges, and the noise of a camera."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[size // 4 : size // 2, size // 3 : 2 * size // 3] = draw.integers(0, 256, 3)
    pixels += draw.normal(0, 4, pixels.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return prepared(buffer.getvalue(), size)


def write_corpus(storage: Storage, size: int) -> tuple[Manifest, list[bytes]]:
    kind = Images(size=size, tokens=PATCHES**2)
    span = [Tokenizer.image_start, *[Tokenizer.image] * kind.tokens, Tokenizer.image_end]
    row = [*span * IMAGES_A_ROW, *[100] * TEXT]
    distinct = [photograph(number, size) for number in range(256)]
    files = [distinct[number * 7 % len(distinct)] for number in range(ROWS * IMAGES_A_ROW)]
    packed = Packed(
        np.tile(np.array(row, np.int32), (ROWS, 1)),
        [[len(row)]] * ROWS,
        [[0]] * ROWS,
        [[len(row) - TEXT, len(row)]] * ROWS,
        [files[at : at + IMAGES_A_ROW] for at in range(0, len(files), IMAGES_A_ROW)],
    )
    path, domain = "train/images-d/00000.parquet", "images-d"
    shard = write_shard(storage, path, "train", domain, packed, GROUP)
    return bare_manifest([shard], len(row)).model_copy(update={"images": kind}), files


def piece_of(manifest: Manifest, steps: int) -> Piece:
    length = manifest.sequence_length
    only = phase(0, corpus=manifest.fingerprint, sequence_length=length, global_batch=BATCH)
    (piece,) = Curriculum([only], manifest).pieces(range(steps))
    return piece


def decode(files: list[bytes], count: int) -> None:
    for number in range(count):
        np.asarray(Image.open(io.BytesIO(files[number % len(files)])))


@ray.remote(num_cpus=0.5)
class Rank:
    def stream(self, reader: ShardReader, piece: Piece) -> float:
        """Images a second of a stream, behind its warm-up."""
        first, images, start = int(len(piece.steps) * WARM_UP), 0, 0.0
        for number, batch in enumerate(
            open_stream(reader, [piece], 1, 0, Stream(read_tasks=TASKS, ahead_megabytes=AHEAD))
        ):
            if number == first:
                start = time.perf_counter()
            elif number > first and batch.samples.images is not None:
                images += len(batch.samples.images)
        return images / (time.perf_counter() - start)

    def pillow(self, files: list[bytes], count: int) -> float:
        decode(files, count // 10)
        start = time.perf_counter()
        decode(files, count)
        return count / (time.perf_counter() - start)


def with_ray(reader: ShardReader, files: list[bytes], steps: int) -> dict[str, Callable[[], float]]:
    piece, held = piece_of(reader.manifest, steps), ray.put(files)
    count = steps * BATCH * IMAGES_A_ROW // TASKS

    def stream() -> float:
        actor = Rank.remote()
        speed = ray.get(actor.stream.remote(reader, piece))
        ray.kill(actor)
        return float(speed)

    def pillow() -> float:
        actors = [Rank.remote() for _ in range(TASKS)]
        speeds = ray.get([actor.pillow.remote(held, count) for actor in actors])
        for actor in actors:
            ray.kill(actor)
        return float(sum(speeds))

    return {"stream, two read tasks": stream, "bare Pillow, two processes": pillow}


def in_one_process(
    reader: ShardReader, files: list[bytes], steps: int
) -> dict[str, Callable[[], float]]:
    piece = piece_of(reader.manifest, steps)
    count = steps * BATCH * IMAGES_A_ROW
    block = int(BLOCK_BYTES / sample_bytes(piece, reader.manifest.images))

    def fetch() -> float:
        start = time.process_time()
        for first in range(0, steps * BATCH, block):
            positions = np.arange(first, min(first + block, steps * BATCH))
            reader.fetch(piece.order.locate(positions), reader.manifest.sequence_length)
        return count / (time.process_time() - start)

    def pillow() -> float:
        start = time.process_time()
        decode(files, count)
        return count / (time.process_time() - start)

    return {"reader, one process": fetch, "bare Pillow in it": pillow}


def compare(name: str, sides: dict[str, Callable[[], float]], rounds: int, console: Any) -> None:
    """The first of two sides against the second."""
    ratios, found = [], {side: [0.0] * 0 for side in sides}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        speeds = {side: sides[side]() for side in order}
        if number:  # round 0 warms up
            for side in sides:
                found[side].append(speeds[side])
            ours, bare = (speeds[side] for side in sides)
            ratios.append(ours / bare)
    told = ", ".join(f"{side} {statistics.median(s):,.0f}" for side, s in found.items())
    console.print(
        f"{name}: {told} images/s; median ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}); target {TARGET}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", type=int, default=80_000, help="of 64 pixels; fewer if larger")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(highlight=False)
    cluster.OBJECT_STORE = OBJECT_STORE
    with tempfile.TemporaryDirectory() as folder, cluster.connected(Cluster(workers=TASKS)):
        for size in arguments.sizes:
            storage = open_storage(f"{folder}/{size}")
            manifest, files = write_corpus(storage, size)
            reader = ShardReader(ShardCache(Path(folder), 1 << 40, storage), manifest)
            steps = int(arguments.images * (64 / size) ** 2 / (BATCH * IMAGES_A_ROW))
            for sides in (in_one_process, with_ray):
                name = f"{size} pixels"
                compare(name, sides(reader, files, max(steps, 10)), arguments.rounds, console)
    console.print(f"load of the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
