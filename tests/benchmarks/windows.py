"""Machinery that is at work in every other window of steps: what it costs, within one run.

A machine whose speed drifts treats neighbouring windows alike, so each pair of them gives a ratio.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

WINDOW = 20
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
        if window > 0 and into == 0:
            median = statistics.median(self.seconds[window - 1])
            print(f"window {window} of {len(self.seconds)}: {median:.3f} s a step", flush=True)
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
        """Print the ratio of the median step at work to that at rest, over all pairs."""
        medians = [statistics.median(seconds) for seconds in self.seconds]
        ratios = sorted(ratios_of(medians))
        low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
        print(
            f"median step: {statistics.median(medians):.3f} s\n"
            f"a step with {what} at work takes {statistics.median(ratios):.4f} times as long as at rest "
            f"(quartiles {low:.4f} and {high:.4f}); target at most {target}"
        )


def ratios_of(medians: Sequence[float]) -> list[float]:
    """Work over rest of each two neighbours; the first of all is at rest."""
    return [
        second / first if number % 2 == 0 else first / second
        for number, (first, second) in enumerate(itertools.pairwise(medians))
    ]
