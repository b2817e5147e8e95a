"""How well a figure is known: percentile bootstrap over items (Efron 1979).

Items are drawn with replacement, the figure is computed anew, and the middle 95 % of a thousand such
figures are its interval. It tells what other items of the same kind would have given, not what another
training would have.
"""

from collections.abc import Sequence

import numpy as np

from panthalassa.evaluate.metrics import AGGREGATES, Floats

CONFIDENCE = 0.95
REPLICATES = 1000
SEED = 0


def interval(aggregate: str, numbers: Floats) -> tuple[float, float]:
    """The 95 % interval of `aggregate` over the items' numbers [n, k].

    Where all items are right, or all wrong, resampling knows of no other, and the far end is that of
    the exact binomial interval (Clopper & Pearson 1934).
    """
    right = right_or_wrong(aggregate, numbers)
    if right is not None and (right == right[0]).all():
        far = ((1 - CONFIDENCE) / 2) ** (1 / len(right))
        return (far, 1.0) if right[0] else (0.0, 1 - far)
    return middle(replicates(aggregate, (numbers,))[0])


def right_or_wrong(aggregate: str, numbers: Floats) -> Floats | None:
    """1 for each item that is right and 0 for the others, where a metric is of that kind."""
    if aggregate == "accuracy":
        return np.asarray(numbers[:, 0] == numbers[:, 1], np.float64)
    if aggregate == "mean" and np.isin(numbers, (0, 1)).all():
        return numbers.ravel()
    return None


def replicates(aggregate: str, numbers: Sequence[Floats]) -> Floats:
    """The figure of each of the sets of numbers, over the same drawn items: [sets, REPLICATES]."""
    generator, of = np.random.default_rng(SEED), AGGREGATES[aggregate]
    n = len(numbers[0])
    figures = np.empty((len(numbers), REPLICATES))
    for drawn in range(REPLICATES):
        items = generator.integers(0, n, n)
        figures[:, drawn] = [of(rows[items]) for rows in numbers]
    return figures


def middle(figures: Floats) -> tuple[float, float]:
    """What holds the middle 95 % of figures."""
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(figures, (outside, 1 - outside))
    return float(low), float(high)
