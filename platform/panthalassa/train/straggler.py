"""Stragglers: ranks that are slow by themselves, and with them all others.

A step takes every rank as long as the slowest, because each waits for all. So the seconds count in which
a rank waits for no other: until it has its samples, in preparing its micro-batches, in the optimizer. A
rank counts with its median step, so that one hiccup names nobody.
"""

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from panthalassa.train.agreement import everywhere
from panthalassa.train.callback import Callback
from panthalassa.train.events import Notice, Step
from panthalassa.train.training_run import TrainingRun

FACTOR = 1.5
SCORE = 3.5
"""The modified z-score above which Iglewicz & Hoaglin (1993) call a value an outlier."""
NORMAL = 0.6745
"""The median absolute deviation of a normal distribution, in standard deviations."""
SHORTEST = 1e-6
"""Seconds below which a median says nothing of a rank."""
SPREAD = 0.05
"""The median absolute deviation counts as at least this share of the median."""


@dataclass(frozen=True)
class Slow:
    rank: int
    factor: float
    """Times the median."""
    z: float


def slow_ranks(seconds: Sequence[float]) -> list[Slow]:
    """The ranks that are outliers, by their seconds [ranks].

    Medians are the lower ones: of two ranks, the faster is the measure of the slower.
    """
    median = statistics.median_low(seconds)
    deviation = statistics.median_low([abs(x - median) for x in seconds])
    if median < SHORTEST:
        return []
    scale = max(deviation, SPREAD * median)
    found = [
        Slow(rank, x / median, NORMAL * (x - median) / scale)
        for rank, x in enumerate(seconds)
        if x > FACTOR * median
    ]
    return [slow for slow in found if slow.z > SCORE]


class OptimizerClock:
    """Seconds of this rank in the optimizer; on a GPU those of the step before, which is done."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.seconds = 0.0
        self._start = 0.0
        self._events: list[Any] = []
        if device.type == "cuda":
            self._events = [torch.Event("cuda", enable_timing=True) for _ in range(2)]
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._steps = 0

    def _before(self, *_: Any) -> None:
        if self._events and self._steps:
            self.seconds = self._events[0].elapsed_time(self._events[1]) / 1e3
        if self._events:
            self._events[0].record()
        self._start = time.perf_counter()

    def _after(self, *_: Any) -> None:
        if self._events:
            self._events[1].record()
        else:
            self.seconds = time.perf_counter() - self._start
        self._steps += 1

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class Straggler(Callback):
    """Compares the ranks every so many steps, and names a slow one once until it has caught up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.slow: set[int] = set()
        self.clock: OptimizerClock | None = None

    def on_start(self, run: TrainingRun) -> None:
        self.clock = OptimizerClock(run.optimizer, run.device)

    def after_step(self, run: TrainingRun, step: Step) -> None:
        assert self.clock is not None
        self.seconds.append(run.local_seconds + self.clock.seconds)
        if len(self.seconds) < run.config.guard.straggler_every:
            return
        mine = socket.gethostname(), statistics.median(self.seconds)
        self.seconds = []
        ranks = everywhere([mine])
        found = slow_ranks([seconds for _, seconds in ranks])
        for slow in found:
            if slow.rank not in self.slow:
                host, seconds = ranks[slow.rank]
                run.poster.post(
                    Notice(
                        f"rank {slow.rank} on {host} is slow: {slow.factor:.1f} times the median in "
                        f"what it does alone ({seconds:.3g} s a step, z {slow.z:.1f}); all wait for it"
                    )
                )
        self.slow = {slow.rank for slow in found}

    def close(self) -> None:
        if self.clock:
            self.clock.close()
