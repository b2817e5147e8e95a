"""How good an order is: normalised discounted cumulative gain (Järvelin & Kekäläinen 2002)."""

from collections.abc import Sequence

import numpy as np


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Of things ordered by falling `scores`, beside the best order: sum(relevance / log2(1 + place)).

    Equal scores share their places (McSherry & Najork 2008), so that an order that nothing says is worth
    what it is on average. 0 where nothing is relevant, as XGLUE's evaluation has it.
    """
    gain = np.asarray(relevance, np.float64)
    discount = 1 / np.log2(2 + np.arange(len(gain)))
    best = float(np.sort(gain)[::-1] @ discount)
    if not best:
        return 0.0
    _, group, count = np.unique(-np.asarray(scores), return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group, gain) / count
    ends = np.cumsum(count)
    sums = np.concatenate(([0.0], np.cumsum(discount)))
    return float(mean_gain @ (sums[ends] - sums[ends - count])) / best
