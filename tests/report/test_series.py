"""Thinned out figures keep the extremes, and each point counts once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.report.series import Series, bucket

values = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]), max_size=200)


@given(values, st.integers(1, 50))
def test_buckets_keep_the_extremes_the_mean_and_each_step_once(
    found: list[float], most: int
) -> None:
    series = Series.of([(step, 0.0, value) for step, value in enumerate(found, 1)])
    buckets = bucket(series, most)
    finite = {step: value for step, value in enumerate(found, 1) if np.isfinite(value)}
    assert len(buckets.mean) <= most
    assert sorted([*finite, *buckets.not_finite.tolist()]) == list(range(1, len(found) + 1))
    seen = 0
    for first, last, mean, low, high in zip(
        buckets.first, buckets.last, buckets.mean, buckets.low, buckets.high, strict=True
    ):
        inside = [finite[step] for step in range(first, last + 1) if step in finite]
        seen += len(inside)
        assert len(inside) <= buckets.size
        assert (low, high) == (min(inside), max(inside))
        assert abs(mean - np.mean(inside)) <= 1e-6
    assert seen == len(finite)


def test_as_many_points_as_are_allowed_stay_as_they_are() -> None:
    buckets = bucket(Series.of([(step, 0.0, float(step)) for step in range(5, 15)]), 10)
    assert buckets.first.tolist() == buckets.last.tolist() == list(range(5, 15))
    assert buckets.mean.tolist() == buckets.low.tolist() == buckets.high.tolist()
