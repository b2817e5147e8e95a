"""How fast a run is exported, beside the plain copy of a file of as many bytes.

`make bench-export`. Medians of rounds, each ratio within one round, so that a disk whose speed drifts
treats both alike. Both read from the page cache and end with the bytes on the disk. An export hashes
what it reads and what it writes. There are two kinds:

- trained: a checkpoint of two ranks, whose weights it puts together;
- imported: one of whole tensors, as an import leaves it.

Of both it prints the processor's time, too: on a machine with other work that alone says something.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint import SIZES, commit
from ranks import Ranks, TinyRun, tiny

from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.llama_folder import CONFIG
from panthalassa.exchange.tokenizer_source import IMPORTED
from panthalassa.model.hugging_face import to_llama
from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import State
from panthalassa.train.snapshot import Place, save

TARGET = 0.60


def trained(folder: str) -> None:
    """A run of 270 MB of weights that says it was imported, so that it needs no corpus."""
    overrides = ("model.vocabulary_size=49152", *(f"model.{size}" for size in SIZES))
    run, storage = TinyRun(tiny(*overrides, "train.sequence_length=64")), open_storage(folder)
    run.step(0)
    model = run.config.model
    state = State(run.model, run.optimizer).tensors()
    save(Place(storage), state, commit(1).model_copy(update={"model": model.identity()}))
    content = json.dumps(to_llama(model, 64, "float32", None)).encode()
    storage.write(f"{IMPORTED}/{CONFIG}", content)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    os.sync()
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def exported(run: Path, folder: Path) -> tuple[float, float]:
    return timed(lambda: export(open_storage(str(run)), open_storage(str(folder)), print))


def plain_copy(source: Path, target: Path) -> tuple[float, float]:
    def copy() -> None:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())

    found = timed(copy)
    target.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="on the disk to measure; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        place = Path(directory)
        Ranks()(2, trained, str(place / "trained"), timeout=600)
        exported(place / "trained", place / "model")
        import_model(
            open_storage(str(place / "model")), open_storage(str(place / "imported")), print
        )
        weights = place / "model" / "model.safetensors"
        for kind in ("trained", "imported"):
            rounds = []
            for number in range(arguments.rounds + 1):
                copies = [plain_copy(weights, place / "copy")] if number % 2 else []
                took = exported(place / kind, place / "out")
                copied, *_ = copies or [plain_copy(weights, place / "copy")]
                shutil.rmtree(place / "out")
                if number:  # the first round warms up
                    rounds.append((copied[0] / took[0], *took, *copied))
            ratios = [ratio for ratio, *_ in rounds]
            ratio, wall, used, copy_wall, copy_used = map(
                statistics.median, zip(*rounds, strict=True)
            )
            print(
                f"{kind}: {weights.stat().st_size / 1e6:.0f} MB of weights in {wall:.2f} s ({used:.2f} "
                f"of the processor), a plain copy in {copy_wall:.2f} s ({copy_used:.2f}); median "
                f"ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); target at least {TARGET}"
            )


if __name__ == "__main__":
    main()
