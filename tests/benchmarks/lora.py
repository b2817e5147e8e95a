"""What adapters save: the memory of a rank that tunes them, beside one that tunes all weights.

`make bench-lora`. Each way of training runs in a process of its own: three real steps of the platform's
on a model of 110 million parameters, which is large beside what Python and torch take. The peak is the
most resident memory that the system has counted for the process. Two ratios are printed: of the peaks as
they are, and of what they are above that of the process before the model was built.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks import TinyRun, tiny

from panthalassa.config import Config
from panthalassa.model.transformer import count_parameters

TARGET = 0.60
MODEL = {
    "vocabulary_size": 4096,
    "hidden_size": 768,
    "layers": 12,
    "heads": 12,
    "kv_heads": 12,
    "head_size": 64,
    "ffn_size": 2816,
}
LORA = ("finetune.start=nowhere", "finetune.lora.rank=16")


def config(*overrides: str) -> Config:
    shape = [f"model.{key}={value}" for key, value in MODEL.items()]
    return tiny(*shape, "train.micro_batch=1", "train.global_batch=2", *overrides)


def peak() -> int:
    """Of this process's resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tune(overrides: tuple[str, ...], connection: Connection) -> None:
    """Send how many parameters are trained, and the peak before the model and after three steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        before = peak()
        run = TinyRun(config(*overrides))
        for step in range(3):
            run.step(step)
        connection.send((count_parameters(run.model, trained=True), before, peak()))
        dist.destroy_process_group()


def measured(overrides: tuple[str, ...]) -> tuple[int, int, int]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=tune, args=(overrides, theirs))
    process.start()
    found: tuple[int, int, int] = mine.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    whole, above = [], []
    for _ in range(rounds):
        peaks = []
        for name, overrides in (("all weights", ()), ("adapters", LORA)):
            trained, before, after = measured(overrides)
            peaks.append((after, after - before))
            print(f"{name}: {trained:,} trained; {after / 1e6:,.0f} MB, {before / 1e6:,.0f} before")
        whole.append(peaks[1][0] / peaks[0][0])
        above.append(peaks[1][1] / peaks[0][1])
    print(
        f"peak with adapters: {statistics.median(whole):.3f} of that with all weights, target at most "
        f"{TARGET}; above an empty process {statistics.median(above):.3f}"
    )


if __name__ == "__main__":
    main()
