"""How well two measured batch sizes predict a step at others, on this machine.

`make bench-planner`. The laptop model is trained by a bare loop on one core, with four batch sizes
in turn, so that a machine whose speed drifts treats all alike. The medians of two of them refit the
planner's factors; the others are predicted. Prints both, and fails when one is off by more than the
target.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from panthalassa.config_model import Model
from panthalassa.model.transformer import Transformer, initial_weight
from panthalassa.planner.counts import Arrangement, Counts, Shape, count
from panthalassa.planner.hardware import Cluster, cpu
from panthalassa.planner.refit import Observation, refit
from panthalassa.planner.speed import speed

MICRO_BATCH, SEQUENCE = 2, 256
FITTED, PREDICTED = (2, 8), (4, 16)
TARGET = 0.15


def stepper(model: Model, batch: int) -> Callable[[], None]:
    """A function that makes one optimizer step of `batch` samples."""
    network: nn.Module = Transformer(model)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, model, 0, torch.device("cpu")))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(model.vocabulary_size, (batch, SEQUENCE))
    documents = torch.arange(SEQUENCE).div(100, rounding_mode="floor").expand_as(tokens)
    pieces = list(zip(tokens.split(MICRO_BATCH), documents.split(MICRO_BATCH), strict=True))

    def step() -> None:
        for piece, document in pieces:
            (network(piece, document, piece.roll(-1, 1)) / tokens.numel()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(model: Model, rounds: int) -> dict[int, float]:
    """Median seconds of a step, by batch size."""
    steps = {batch: stepper(model, batch) for batch in (*FITTED, *PREDICTED)}
    seconds: dict[int, list[float]] = {batch: [] for batch in steps}
    for number in range(rounds + 1):
        for batch, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # the first one warms up
                seconds[batch].append(time.perf_counter() - start)
    return {batch: statistics.median(times) for batch, times in seconds.items()}


def counts(model: Model, batch: int) -> Counts:
    laid = Arrangement(1, 1, SEQUENCE, batch, MICRO_BATCH, attention="masked")
    return count(Shape.of(model), laid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = Model(preset="laptop")  # type: ignore[call-arg]
    place = Cluster(cpu(8e9), gpus=1, gpus_per_node=1, network=1e9, node_watts=0.0)
    seconds = measured(model, rounds)
    own = refit([Observation(counts(model, batch), place, seconds[batch]) for batch in FITTED])
    worst = 0.0
    for batch, took in sorted(seconds.items()):
        found = speed(counts(model, batch), place, own.factors)
        error = found.step_seconds / took - 1
        kind = "fitted" if batch in FITTED else "predicted"
        print(
            f"batch {batch:>2}: {took:.3f} s measured, {found.step_seconds:.3f} {kind} ({error:+.1%})"
        )
        worst = max(worst, abs(error) if batch in PREDICTED else 0.0)
    print(f"determined: {', '.join(own.determined)}; left as they were: {', '.join(own.assumed)}")
    print(f"worst prediction {worst:.1%}; target {TARGET:.0%}")
    sys.exit(worst > TARGET)


if __name__ == "__main__":
    main()
