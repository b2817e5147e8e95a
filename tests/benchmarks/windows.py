"""Machinery that is at work in every other window of steps: what it costs, within one run.

A machine whose speed drifts treats neighbouring windows alike: each window at work is compared with the
mean of the two at rest around it. The interval tells how well these ratios know their median.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

WINDOW = 10
"""Steps."""


def at_work(step: int) -> bool:
    return step // WINDOW % 2 == 0


class Enough(Exception):
    """All windows are through: ends the run."""


class Windows:
    """Step times in seconds by window; also tells the driver's side when to rest."""

    def __init__(self, pairs: int) -> None:
        self.seconds: list[list[float]] = [[] for _ in range(2 * pairs)]
        self.step = 0

    def take(self, event: Any) -> None:
        """What the run shows; raises Enough at the end."""
        from panthalassa.train.events import Step

        if not isinstance(event, Step):
            return
        self.step = event.step
        window, into = divmod(event.step - WINDOW, WINDOW)  # the first one warms up
        if window > 0 and window % 20 == into == 0:
            mean = statistics.mean(self.seconds[window - 1])
            print(f"window {window} of {len(self.seconds)}: {mean:.3f} s a step", flush=True)
        if window >= len(self.seconds):
            raise Enough
        if window >= 0:
            self.seconds[window].append(event.seconds)

    def sometimes(self, function: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        """`function`, which at rest only returns `otherwise`."""

        def toggled(*arguments: Any) -> Any:
            return function(*arguments) if at_work(self.step) else otherwise

        return toggled

    def run(self, config: Any) -> None:
        """Train until all windows are through."""
        from panthalassa.train.run import pretrain

        with suppress(Enough):
            pretrain(config, self.take)

    def tell(self, what: str, target: float) -> None:
        """Print how long a step takes at work, as a multiple of one at rest."""
        means = [statistics.mean(seconds) for seconds in self.seconds]
        ratio, low, high = median_with_interval(ratios_of(means))
        print(
            f"median step: {statistics.median(means):.3f} s\n"
            f"a step with {what} at work takes {ratio:.4f} times as long as at rest "
            f"(95% interval {low:.4f} to {high:.4f}); target at most {target}"
        )


def ratios_of(means: Sequence[float]) -> list[float]:
    """Work over rest; the first window of all is at rest."""
    around = zip(means[::2], means[1::2], means[2::2], strict=False)
    return [2 * work / (before + behind) for before, work, behind in around]


def median_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the order statistics between which it is in 95 of 100 samples."""
    ordered, spread = sorted(values), 0.98 * math.sqrt(len(values))
    low = max(0, math.floor(len(ordered) / 2 - spread))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + spread))
    return statistics.median(ordered), ordered[low], ordered[high]
