"""How long a run stands still when a node dies: ours, and Ray Train's own elasticity.

Four ranks train on two raylets of this host; one raylet is killed with all that runs on it, and the time
to the first step of the two ranks that are left is taken. Ray Train drives the same ranks with its
settings as they are (stock), and with the public ones that matter set low (tuned). Every round starts
each of the three in a process and cluster of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

STEPS_BEFORE = 30
PATIENCE = 400
TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_initial_delay_ms": "1000",
}
MODES = ("ours", "stock", "tuned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=MODES, nargs="*", default=MODES)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mode:
        given.result.write_text(json.dumps(measure(given.mode, given.corpus)))
        return
    from conftest import prepare_small_corpus  # sets the environment, too

    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        corpus = prepare_small_corpus(Path(folder))
        found: dict[str, list[dict[str, float]]] = {mode: [] for mode in given.only}
        for number in range(given.rounds):
            for mode in given.only:
                found[mode].append(in_a_process(mode, corpus))
                print(f"round {number + 1} {mode}: {line(found[mode][-1])}", flush=True)
    medians = {mode: statistics.median(r["all"] for r in every) for mode, every in found.items()}
    for mode, seconds in medians.items():
        ratio = f", ours is {medians['ours'] / seconds:.0%} of it" if "ours" in medians else ""
        print(f"{mode}: median {seconds:.1f} s{ratio}")


def line(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())


class Measured(Exception):
    """The first step after the kill is done: ends the run."""


def in_a_process(mode: str, corpus: Path) -> dict[str, float]:
    environment = os.environ | (TUNED if mode == "tuned" else {})
    result = corpus.parent / "result.json"
    command = [sys.executable, __file__, "--mode", mode, "--corpus", corpus, "--result", result]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return dict(json.loads(result.read_text()))


def measure(mode: str, corpus: Path) -> dict[str, float]:
    """Seconds from the kill to the first resumed step, in parts and in `all`."""
    from conftest import tree
    from nodes import cluster_of, elastic

    from panthalassa.config import Config
    from panthalassa.config_file import build
    from panthalassa.train.events import Event, Launched, Lost, Ready, Started, Step

    with (
        tempfile.TemporaryDirectory(prefix="recovery-") as folder,
        cluster_of(2, 2) as (nodes, two),
    ):
        overrides = (
            *elastic(nodes.address),
            "train.steps=100000",
            "checkpoint.every=10",
            "evaluation.every=100000",
        )
        config = build(tree(corpus, Path(folder)), list(overrides), "recovery", Config)
        killed: list[float] = []
        marks: list[tuple[str, float]] = []

        def kill() -> None:
            killed.append(time.time())
            nodes.kill(two[1])

        def take(event: Event) -> None:
            if not killed and isinstance(event, Step) and event.step >= STEPS_BEFORE:
                threading.Thread(target=kill).start()
            if not killed:
                return
            now = time.time()
            match event:
                case Lost():
                    marks.append(("noticed", now))
                case Launched():
                    marks.append(("placed", now))
                case Started(part="workers"):
                    marks.append(("ranks started", now))
                case Ready():
                    marks.append(("ready", now))
                case Step() if event.at > killed[0] and any(n == "ready" for n, _ in marks):
                    marks.append(("first step", event.at))
                    raise Measured

        with suppress(Measured):
            RUNS[mode](config, take)
        before, parts = killed[0], {}
        for name, at in marks:
            parts[name] = at - before
            before = at
        return parts | {"all": marks[-1][1] - killed[0]}


def ours(config: object, take: Callable[[object], None]) -> None:
    from panthalassa.train.run import pretrain

    pretrain(config, take)  # type: ignore[arg-type]


def ray_trains_own(config: object, take: Callable[[object], None]) -> None:
    """The same ranks, started, watched and resized by Ray Train."""
    import pyarrow.fs as pafs
    import ray
    from fsspec.implementations.memory import MemoryFileSystem
    from ray import cloudpickle
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from panthalassa.config import Config
    from panthalassa.corpus.manifest import read_manifest
    from panthalassa.storage import open_storage
    from panthalassa.train import board as boards
    from panthalassa.train.events import Failed
    from panthalassa.train.placement import per_rank
    from panthalassa.train.worker import Task

    assert isinstance(config, Config)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address=config.cluster.address, log_to_driver=False)
    corpus = open_storage(config.corpus.directory)
    run = open_storage(config.run.directory).below(config.run.name)
    board = boards.create()
    trainer = TorchTrainer(
        work_again,
        train_loop_config={"task": Task(config, read_manifest(corpus), run, corpus, board)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=(config.cluster.min_workers, config.cluster.workers),
            resources_per_worker=per_rank(config.cluster),
        ),
        run_config=RunConfig(
            name="stock",
            storage_path="/ray-train",
            storage_filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(max_failures=5),
        ),
    )
    threading.Thread(target=trainer.fit, daemon=True).start()
    try:
        while True:
            time.sleep(0.1)
            for event in ray.get(board.take.remote()):
                if isinstance(event, Failed):
                    raise SystemExit(event.message)
                take(event)
    finally:
        ray.shutdown()


def work_again(arguments: dict[str, Any]) -> None:
    """The next attempt of a run, which nobody but its ranks launches."""
    import ray

    from panthalassa.stream.ledger import newest_attempt
    from panthalassa.train.board import Launch
    from panthalassa.train.checkpointing import DAY
    from panthalassa.train.worker import work

    task = arguments["task"]
    attempt = newest_attempt(task.run)
    if ray.train.get_context().get_world_rank() == 0:
        launch = Launch((), time.time(), DAY, epoch=attempt + 1)
        ray.get(task.board.begin.remote(launch))
    work(arguments | {"attempt": attempt})


RUNS = {"ours": ours, "stock": ray_trains_own, "tuned": ray_trains_own}

if __name__ == "__main__":
    main()
