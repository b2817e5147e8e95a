"""What metering and tracking cost a step: the same run with both at work and at rest.

`make bench-accounting`. The laptop model trains on a quarter of the positions that `make train` has in a
step, so that the cost of a step weighs four times as much, with energy from the stand-in for NVML and
MLflow in sqlite. In every other window of steps the meters are not read,
and nothing is spooled, sent to MLflow, or entered in the ledger of energy.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import windows
from windows import Windows, at_work

TARGET = 1.01
LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "laptop.yaml"


def toggling_work(arguments: dict[str, Any]) -> None:
    """`work`, whose meters and spool rest in every other window."""
    from panthalassa.train import board
    from panthalassa.train.energy import Energy
    from panthalassa.train.events import Step
    from panthalassa.train.worker import work

    def sometimes(hook: str, done: int, otherwise: Any) -> None:
        call = getattr(Energy, hook)

        def toggled(energy: Energy, run: Any, *step: Any) -> Any:
            return call(energy, run, *step) if at_work(run.step - done) else otherwise

        setattr(Energy, hook, toggled)

    for hook, done, otherwise in (
        ("before_step", 0, None),
        ("after_input", 0, None),
        ("measure", 0, {}),
        ("after_step", 1, None),
    ):
        sometimes(hook, done, otherwise)
    records = board.records
    board.records = lambda event: (
        records(event) if not isinstance(event, Step) or at_work(event.step - 1) else iter(())
    )
    work(arguments)


def measure(pairs: int, workers: int, folder: Path) -> Windows:
    from conftest import prepare_small_corpus  # sets the environment, before Ray reads it
    from nvml import NvmlDouble, compiled
    from ray import cloudpickle

    library = compiled(folder)
    if library is None:
        raise SystemExit("the stand-in for NVML needs a C compiler (`cc`)")
    os.environ["LD_LIBRARY_PATH"] = str(folder)
    os.environ["NVML_DOUBLE"] = str(folder / "nvml.script")
    double = NvmlDouble(folder / "nvml.script", seconds=None, since=time.monotonic())
    double.add("GPU-0", [(0, 100), (1e6, 100)]).refresh = 0.02
    double.publish()

    from panthalassa.config_file import load
    from panthalassa.energy.ledger import EnergyLedger
    from panthalassa.tracking.sender import Sender
    from panthalassa.train import run, trainer

    found = Windows(pairs)
    for module in (sys.modules[__name__], windows):
        cloudpickle.register_pickle_by_value(module)
    trainer.work = toggling_work
    Sender.send = found.sometimes(Sender.send, None)  # type: ignore[method-assign]
    EnergyLedger.note = found.sometimes(EnergyLedger.note, None)  # type: ignore[method-assign]
    run._Publisher.__call__ = found.sometimes(run._Publisher.__call__, None)  # type: ignore[method-assign]
    overrides = [
        f"corpus.directory={prepare_small_corpus(folder)}",
        f"run.directory={folder}/runs",
        f"run.name=workers-{workers}",
        f"cluster.workers={workers}",
        *("train.steps=1000000", "evaluation.every=1000000"),
        *("train.sequence_length=64", "train.global_batch=8", "train.micro_batch=4"),
        *("checkpoint.every=1000000", "energy.source=nvml"),
    ]
    found.run(load(LAPTOP, overrides))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accounting-") as folder:
        measure(given.pairs, given.workers, Path(folder)).tell("metering and tracking", TARGET)


if __name__ == "__main__":
    main()
