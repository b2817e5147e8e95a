"""What elasticity costs while nothing happens: the same run with its machinery at work and at rest.

`make bench-idle`. Two ranks train on two raylets of this host. Every WINDOW steps the driver's watch
over the cluster, its looks for requests to stop, the ranks' comparison of their speed and their clock
for snapshots are put to rest, or to work again. Each pair of windows gives a ratio of median step times.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

WINDOW = 40
TARGET = 1.01


def at_work(step: int) -> bool:
    return step // WINDOW % 2 == 0


def toggling_work(arguments: dict[str, Any]) -> None:
    """`work`, whose callbacks rest in every other window."""
    from panthalassa.train.checkpointing import Checkpoints
    from panthalassa.train.straggler import Straggler
    from panthalassa.train.worker import work

    compare, measure = Straggler.after_step, Checkpoints.measure

    def sometimes_compare(straggler: Any, run: Any, step: Any) -> None:
        if at_work(step.step):
            compare(straggler, run, step)

    def sometimes_measure(checkpoints: Any, run: Any) -> dict[str, float]:
        resting = {"snapshot_due": 0.0, "snapshot_done": 0.0}
        return measure(checkpoints, run) if at_work(run.step) else resting

    Straggler.after_step, Checkpoints.measure = sometimes_compare, sometimes_measure  # type: ignore[method-assign]
    work(arguments)


class Enough(Exception):
    """All windows are through: ends the run."""


class Windows:
    """Step times in seconds by window; also tells the driver's side when to rest."""

    def __init__(self, count: int) -> None:
        self.seconds: list[list[float]] = [[] for _ in range(count)]
        self.step = 0

    def take(self, event: Any) -> None:
        from panthalassa.train.events import Step

        if not isinstance(event, Step):
            return
        self.step = event.step
        window = event.step // WINDOW - 1  # the first one warms up
        if window >= len(self.seconds):
            raise Enough
        if window >= 0:
            self.seconds[window].append(event.seconds)

    def sometimes(self, function: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        def toggled(*arguments: Any) -> Any:
            return function(*arguments) if at_work(self.step) else otherwise

        return toggled


def measure(pairs: int) -> list[float]:
    """Ratios of the median step at work to that at rest."""
    from conftest import prepare_small_corpus, tree  # sets the environment, before Ray reads it
    from nodes import cluster_of, elastic
    from ray import cloudpickle

    from panthalassa.config import Config
    from panthalassa.config_file import build
    from panthalassa.train import elastic as driver
    from panthalassa.train import stop, trainer
    from panthalassa.train.run import pretrain

    windows = Windows(2 * pairs)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    trainer.work = toggling_work
    driver._Watch.look = windows.sometimes(driver._Watch.look, None)  # type: ignore[method-assign]
    stop.StopRequests.__call__ = windows.sometimes(stop.StopRequests.__call__, False)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        corpus = prepare_small_corpus(Path(folder))
        with cluster_of(1, 1) as (nodes, _):
            overrides = [
                *elastic(nodes.address),
                *("cluster.workers=2", "cluster.min_workers=1"),
                *("model.hidden_size=256", "model.layers=6", "model.heads=8", "model.ffn_size=768"),
                *("train.steps=1000000", "train.global_batch=32", "evaluation.every=1000000"),
                "checkpoint.every=1000000",
            ]
            config = build(tree(corpus, Path(folder)), overrides, "idle", Config)
            with suppress(Enough):
                pretrain(config, windows.take)
    medians = [statistics.median(seconds) for seconds in windows.seconds]
    print(f"median step: {statistics.median(medians):.3f} s")
    return [
        (first / second) if at_work((number + 1) * WINDOW) else (second / first)
        for number, (first, second) in enumerate(itertools.pairwise(medians))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    ratios = sorted(measure(parser.parse_args().pairs))
    low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
    print(
        f"a step with elasticity at work takes {statistics.median(ratios):.4f} times as long as at rest "
        f"(quartiles {low:.4f} and {high:.4f}); target at most {TARGET}"
    )


if __name__ == "__main__":
    main()
