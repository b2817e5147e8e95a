"""Metrics by step as arrays, and fewer points of them, which keep the extremes.

`bucket` is the one rule by which figures are thinned out: consecutive points become one, with their
mean, lowest and highest value. What is not finite is left out of these, and its steps are listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """A metric by step; arrays of one length [n]."""

    step: Steps
    at: Floats
    """In seconds since 1970."""
    value: Floats

    @classmethod
    def of(cls, points: Sequence[tuple[int, float, float]]) -> "Series":
        step, at, value = zip(*points, strict=True) if points else ((), (), ())
        return cls(np.array(step, np.int64), np.array(at, float), np.array(value, float))


@dataclass(frozen=True)
class Buckets:
    """Consecutive points of a series, `size` at a time (the last may have fewer): arrays [buckets]."""

    size: int
    first: Steps
    last: Steps
    mean: Floats
    low: Floats
    high: Floats
    not_finite: Steps
    """All steps whose value is no finite number."""


def bucket(series: Series, most: int) -> Buckets:
    """A series in at most `most` buckets; with as many points or fewer each point is a bucket."""
    finite = np.isfinite(series.value)
    step, value = series.step[finite], series.value[finite]
    not_finite = series.step[~finite]
    if not len(step):
        return Buckets(1, step, step, value, value, value, not_finite)
    size = -(-len(step) // most)
    starts = np.arange(0, len(step), size)
    ends = np.minimum(starts + size, len(step))
    return Buckets(
        size,
        step[starts],
        step[ends - 1],
        np.add.reduceat(value, starts) / (ends - starts),
        np.minimum.reduceat(value, starts),
        np.maximum.reduceat(value, starts),
        not_finite,
    )
