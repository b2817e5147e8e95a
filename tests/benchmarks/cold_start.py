"""What a stream's cold start adds to the time to the first step, wherever its cursor is.

`make bench-cold-start`. Runs of the laptop model that go on, in turn, near the start of a small corpus
and at sample 10**9 of one of a million row groups. The stream warms up while the model is built and
the checkpoint is read; what is left of that is the first step's wait for data. Prints the medians of
this wait and of the parts before it, and what the order of the large corpus keeps in memory.

A million row groups of real bytes would fill a disk, so the large corpus lists ten shards of a
thousand row groups a hundred times each.
"""

import argparse
import os
import statistics
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from rich.console import Console

from panthalassa.cluster import connected
from panthalassa.config import Config
from panthalassa.config_file import load
from panthalassa.corpus.manifest import MANIFEST, Manifest, read_manifest
from panthalassa.corpus.pack import Packed
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.shards import write_shard
from panthalassa.storage import open_storage
from panthalassa.stream.order import Mixture, Order
from panthalassa.train.checkpoint import COMMIT, committed, folder, read_commit
from panthalassa.train.events import Event, Started, Step
from panthalassa.train.run import pretrain

LENGTH, BATCH = 64, 16
SHARDS, GROUPS, ROWS, REPEATS = 10, 1000, 4, 100
CURSOR = 10**9
TARGET = 2.0
WAIT = "wait for data"
LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "laptop.yaml"


def configuration(place: Path, corpus: str, steps: int) -> Config:
    changes = [
        f"run.directory={place}/runs",
        f"run.name={corpus}",
        f"corpus.directory={place}/{corpus}",
        f"corpus.sequence_length={LENGTH}",
        f"train.sequence_length={LENGTH}",
        f"train.global_batch={BATCH}",
        f"train.steps={steps}",
        "train.schedule.warmup_steps=0",
        "evaluation.samples=2",
        "evaluation.prompts=[]",
    ]
    return load(LAPTOP, changes)


def write_corpora(place: Path) -> Manifest:
    """The corpora `small` and `large`, of the same shards and a real tokenizer; the large manifest."""
    config = configuration(place, "small", 1)
    prepare(config.corpus, lambda line: None)
    storage, draw = open_storage(config.corpus.directory), np.random.default_rng(0)
    manifest, rows = read_manifest(storage), GROUPS * ROWS
    shards = []
    for number in range(SHARDS):
        tokens = draw.integers(3, 4096, (rows, LENGTH), dtype=np.int32)
        packed, path = (
            Packed(tokens, [[LENGTH]] * rows, [[0]] * rows),
            f"train/d/{number:05d}.parquet",
        )
        shards.append(write_shard(storage, path, "train", "d", packed, ROWS))
    large = place / "large"
    large.mkdir()
    for entry in (place / "small").iterdir():
        if entry.name != MANIFEST:
            (large / entry.name).symlink_to(entry)
    for name, times in (("small", 1), ("large", REPEATS)):
        listed = [*manifest.split("held_out"), *shards * times]
        manifest = manifest.model_copy(update={"shards": listed})
        (place / name / MANIFEST).write_bytes(manifest.encode())
    return manifest


def first_step(config: Config) -> dict[str, float]:
    """Seconds of the parts up to the first step, and of its wait for data."""
    parts: dict[str, float] = {}

    def note(event: Event) -> None:
        if isinstance(event, Started):
            parts[event.part] = event.seconds
        elif isinstance(event, Step):
            parts.setdefault(WAIT, event.data_seconds)

    pretrain(config, note)
    return parts


def move_checkpoint(config: Config, step: int) -> None:
    """Make a run's only checkpoint one of `step`."""
    run = Path(config.run.directory, config.run.name)
    storage = open_storage(str(run))
    (name,) = committed(storage)
    update = {"step": step, "samples": step * BATCH}
    commit = read_commit(storage, name).model_copy(update=update).sealed()
    (run / name).rename(run / folder(step))
    (run / folder(step) / COMMIT).write_text(commit.model_dump_json())


def order_megabytes(manifest: Manifest) -> tuple[float, float]:
    """What an order of the corpus keeps, and its peak while it is built and asked at CURSOR."""
    tracemalloc.start()
    order = Order(manifest, LENGTH, Mixture(1.0), 1)
    order.locate(np.arange(CURSOR, CURSOR + 1024))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / 1e6, peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(highlight=False)
    done = {"small": 1, "large": CURSOR // BATCH}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in done}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        with connected(configuration(place, "small", 1).cluster):
            kept, peak = order_megabytes(write_corpora(place))
            for name, step in done.items():
                config = configuration(place, name, 1)
                pretrain(config, lambda event: None)
                move_checkpoint(config, step)
            for number in range(1, rounds + 1):
                for name, step in done.items():
                    found[name].append(first_step(configuration(place, name, step + number)))
    console.print(
        f"order of {SHARDS * GROUPS * REPEATS:,} row groups: {kept:.0f} MB, {peak:.0f} at peak"
    )
    for name, runs in found.items():
        parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        told = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items() if part != WAIT)
        console.print(f"{name}: {WAIT} {parts[WAIT]:.3f} s (target {TARGET}); {told}")


if __name__ == "__main__":
    main()
