"""What elasticity costs while nothing happens: the same run with its machinery at work and at rest.

`make bench-idle`. One rank, and then two, train on as many raylets of this host. In every other window
of steps the driver's watch over the cluster, its looks for requests to stop, the ranks' comparison of
their speed and their clock for snapshots are put to rest.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import windows
from windows import Windows, at_work

TARGET = 1.01


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


def measure(pairs: int, workers: int) -> Windows:
    from conftest import prepare_small_corpus, tree  # sets the environment, before Ray reads it
    from nodes import cluster_of, elastic
    from ray import cloudpickle

    from panthalassa.config import Config
    from panthalassa.config_file import build
    from panthalassa.train import elastic as driver
    from panthalassa.train import stop, trainer

    found = Windows(pairs)
    for module in (sys.modules[__name__], windows):
        cloudpickle.register_pickle_by_value(module)
    trainer.work = toggling_work
    driver._Watch.look = found.sometimes(driver._Watch.look, None)  # type: ignore[method-assign]
    stop.StopRequests.__call__ = found.sometimes(stop.StopRequests.__call__, False)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        corpus = prepare_small_corpus(Path(folder))
        with cluster_of(*[1] * workers) as (nodes, _):
            overrides = [
                *elastic(nodes.address),
                *(f"cluster.workers={workers}", "cluster.min_workers=1"),
                *("model.hidden_size=256", "model.heads=8", "model.ffn_size=768"),
                *("train.steps=1000000", "train.global_batch=8", "evaluation.every=1000000"),
                *("checkpoint.every=1000000", "parallel.keep_gathered=true"),
            ]
            found.run(build(tree(corpus, Path(folder)), overrides, "idle", Config))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    measure(given.pairs, given.workers).tell("elasticity", TARGET)


if __name__ == "__main__":
    main()
