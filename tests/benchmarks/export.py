"""How fast a run is exported, beside the plain copy of a file of as many bytes.

`make bench-export`. Medians of rounds, each ratio within one round, so that a disk whose speed drifts
treats both alike. Both read from the page cache and end with the bytes on the disk. An export verifies
its checkpoint first and hashes what it writes, and of a trained run it verifies the optimizer's moments,
too, which are two thirds of a checkpoint's bytes. So there are two kinds:

- trained: a checkpoint of two ranks with weights and moments;
- imported: one of weights alone, as an import leaves it.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint import SIZES, commit
from ranks import Ranks, TinyRun, tiny

from panthalassa.exchange.export import export
from panthalassa.exchange.importing import FOLDER, import_model
from panthalassa.exchange.llama_folder import CONFIG
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
    storage.write(f"{FOLDER}/{CONFIG}", content)


def timed(run: Path, folder: Path) -> tuple[float, int]:
    """Seconds of an export, and bytes of its weights."""
    os.sync()
    start = time.perf_counter()
    found = export(open_storage(str(run)), open_storage(str(folder)), print)
    return time.perf_counter() - start, found.size


def plain_copy(source: Path, target: Path) -> float:
    os.sync()
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="on the disk to measure; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        place = Path(directory)
        Ranks()(2, trained, str(place / "trained"), timeout=600)
        timed(place / "trained", place / "model")
        import_model(
            open_storage(str(place / "model")), open_storage(str(place / "imported")), print
        )
        weights = place / "model" / "model.safetensors"
        for kind in ("trained", "imported"):
            ratios, seconds = [], []
            for number in range(arguments.rounds + 1):
                copied = plain_copy(weights, place / "copy") if number % 2 else 0.0
                took, size = timed(place / kind, place / "out")
                copied = copied or plain_copy(weights, place / "copy")
                shutil.rmtree(place / "out")
                if number:  # the first round warms up
                    ratios.append(copied / took)
                    seconds.append((took, copied))
            export_seconds, copy_seconds = map(statistics.median, zip(*seconds, strict=True))
            print(
                f"{kind}: {size / 1e6:.0f} MB of weights in {export_seconds:.2f} s, a plain copy in "
                f"{copy_seconds:.2f} s; median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} "
                f"to {max(ratios):.3f}); target at least {TARGET}"
            )


if __name__ == "__main__":
    main()
