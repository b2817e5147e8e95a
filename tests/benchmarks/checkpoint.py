"""What checkpoints cost: the loop's stall, and the speed of saving and loading.

`make bench-checkpoint`. For one rank and for two, with more than 200 MB of weights and moments on a real
disk, medians of rounds. All ratios are within one round, so that a disk whose speed drifts treats both
alike:

- stall: for how long the loop stands still when a snapshot is saved in the background, against a save
  that it waits for;
- save: bytes a second from the copy to the commit, against one process that writes the same bytes in
  sequence and hashes them;
- load: bytes a second of verifying and loading, against one process that reads and hashes them.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks import Ranks, TinyRun, tiny

from panthalassa.storage import open_storage
from panthalassa.train import restore
from panthalassa.train.agreement import total
from panthalassa.train.checkpoint import Commit, State, folder
from panthalassa.train.snapshot import Place, Saving, Snapshots, save

SIZES = ("hidden_size=512", "layers=6", "heads=8", "kv_heads=8", "head_size=64", "ffn_size=1536")
PIECE = 1 << 20
TARGETS = {"stall": 0.05, "save": 0.70, "load": 0.70}


class Bench:
    """One rank's run and what it times, in seconds by name."""

    def __init__(self, directory: str) -> None:
        overrides = ("model.vocabulary_size=4096", *(f"model.{size}" for size in SIZES))
        self.run = TinyRun(tiny(*overrides, "train.sequence_length=64"))
        self.run.step(0)
        self.state = State(self.run.model, self.run.optimizer)
        self.place = Place(open_storage(directory))
        self.snapshots = Snapshots(self.place, self.state)
        _, self.size = save(self.place, self.state.tensors(), commit(0))
        self.seconds: dict[str, float] = {}
        self.saving: Saving | None = None

    def rounds(self, count: int) -> list[dict[str, float]]:
        return [self.round(number % 2 == 0) for number in range(count)]

    def round(self, plain_first: bool) -> dict[str, float]:
        """One of each. What comes behind much writing finds a slower disk, so the order changes."""
        self.seconds = {}
        if plain_first:
            self.plain()
        self.timed("step", lambda: self.run.step(0))
        self.timed("synchronous", lambda: save(self.place, self.state.tensors(), commit(1)))
        self.timed("snapshot", lambda: self.snapshot(2))
        self.timed("load", lambda: restore.load(self.place.run, folder(2), self.state))
        self.timed("beside", lambda: self.snapshot(3, beside_steps=True))
        assert self.saving is not None
        self.seconds["stall"] = total(self.saving.stall)[0] / dist.get_world_size()
        if not plain_first:
            self.plain()
        if dist.get_rank() == 0:
            for step in (1, 2, 3):
                shutil.rmtree(self.place.run.path(folder(step)))
        return self.seconds

    def plain(self) -> None:
        """The same bytes, by one process in sequence."""
        if dist.get_rank() == 0:
            data = torch.randint(256, (self.size,), dtype=torch.uint8).numpy().data
            path = Path(self.place.run.root, "plain")
            self.seconds |= {"write": plain_write(data, path), "read": plain_read(path)}
            path.unlink()

    def timed(self, name: str, part: Callable[[], Any]) -> Any:
        os.sync()
        dist.barrier()
        start = time.perf_counter()
        result = part()
        dist.barrier()
        self.seconds[name] = time.perf_counter() - start
        return result

    def snapshot(self, step: int, beside_steps: bool = False) -> None:
        """Save in the background, and meanwhile wait or train."""

        def keep(saving: Saving) -> None:
            self.saving = saving

        self.snapshots.take(commit(step), keep)
        start, steps = time.perf_counter(), 0
        while beside_steps and total(self.snapshots.done)[0] < dist.get_world_size():
            self.run.step(0)
            steps += 1
        self.seconds["slowdown"] = time.perf_counter() - start - steps * self.seconds["step"]
        self.snapshots.settle()


def rounds(count: int, directory: str) -> tuple[int, list[dict[str, float]]]:
    bench = Bench(directory)
    return bench.size, bench.rounds(count)


def commit(step: int) -> Commit:
    return Commit(model={}, phases=[], step=step, samples=0, evaluations=[], healthy=True, files={})


def plain_write(data: memoryview, path: Path) -> float:
    os.sync()
    start, digest = time.perf_counter(), hashlib.sha256()
    with path.open("wb") as file:
        for offset in range(0, len(data), PIECE):
            file.write(data[offset : offset + PIECE])
            digest.update(data[offset : offset + PIECE])
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def plain_read(path: Path) -> float:
    start, digest = time.perf_counter(), hashlib.sha256()
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--directory", help="on the disk to measure; else a temporary one")
    arguments = parser.parse_args()
    for world in arguments.ranks:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            size, found = Ranks()(world, rounds, arguments.rounds + 1, directory, timeout=600)[0]
        first, *later = found
        ratios = {
            "stall": [r["stall"] / r["synchronous"] for r in later],
            "save": [r["write"] / r["snapshot"] for r in later],
            "load": [r["read"] / r["load"] for r in later],
        }
        print(f"{world} ranks, {size / 1e6:.0f} MB; the first stall was {first['stall']:.3f} s")
        medians = {
            part: statistics.median(r[part] for r in later)
            for part in (
                "step",
                "stall",
                "slowdown",
                "synchronous",
                "snapshot",
                "write",
                "load",
                "read",
            )
        }
        print("  medians: " + ", ".join(f"{part} {value:.3f} s" for part, value in medians.items()))
        for part, values in ratios.items():
            sign = "at most" if part == "stall" else "at least"
            print(
                f"  {part}: median ratio {statistics.median(values):.3f} ({min(values):.3f} to "
                f"{max(values):.3f}); target {sign} {TARGETS[part]}"
            )


if __name__ == "__main__":
    main()
