"""Which trials are worth a look: the front of several objectives, and the frugal one.

Trials in, trials out. Only finished ones count, and of these only those whose metrics are known: a loss
that was read before the last step says nothing beside one that was read after it.
"""

import math
from collections.abc import Mapping, Sequence

from panthalassa.sweep.config import Sweep
from panthalassa.sweep.results import Trial

HIGHER_IS_BETTER = frozenset({"tokens_per_second"})
"""Metrics of which more is better; of all others less is."""


def signed(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The metric, turned so that lower is better; None when it is not known, or no finite number."""
    value = metrics.get(metric)
    if value is None or not math.isfinite(value):
        return None
    return -value if metric in HIGHER_IS_BETTER else value


def comparable(found: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """The finished trials of which each of the metrics is known."""
    return [
        trial
        for trial in found
        if trial.state == "finished"
        and all(signed(metric, trial.metrics) is not None for metric in metrics)
    ]


def front(found: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that none beats: as good in all objectives, and better in one.

    In the order of the first objective, the best first; with one objective these are the best ones.
    """
    scores = {
        trial.number: tuple(signed(name, trial.metrics) or 0.0 for name in objectives)
        for trial in comparable(found, objectives)
    }

    def beaten(score: tuple[float, ...]) -> bool:
        return any(
            other != score and all(a <= b for a, b in zip(other, score, strict=True))
            for other in scores.values()
        )

    best = [trial for trial in found if trial.number in scores and not beaten(scores[trial.number])]
    return sorted(best, key=lambda trial: scores[trial.number])


def frugal(found: Sequence[Trial], within: float) -> Trial | None:
    """The trial of the fewest joules, of those whose loss is at most `within` (a share) above the best.

    The best is that of all trials, whether its joules are known or not. None when no trial near it has
    measured any.
    """
    best = front(found, ["loss"])
    if not best:
        return None
    limit = best[0].metrics["loss"] * (1 + within)
    near = [t for t in comparable(found, ["loss", "joules"]) if t.metrics["loss"] <= limit]
    return min(near, key=lambda trial: trial.metrics["joules"], default=None)


def best(found: Sequence[Trial], sweep: Sweep) -> list[Trial]:
    """What a sweep was for: the frugal trial if it asks for that and there is one, or else the front."""
    chosen = frugal(found, sweep.within) if sweep.within else None
    return [chosen] if chosen else front(found, sweep.objective)
