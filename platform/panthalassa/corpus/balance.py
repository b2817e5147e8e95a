"""The sample that a tokenizer is trained on: sizes of domains come in, the share of each goes out.

Drawn by size, the vocabulary would be English; drawn alike, half of it would go to languages of a few
pages. So a domain's weight is its size to the power of α (Conneau et al. 2020, section 3.1, with
α = 0.3), and a domain that is smaller than its part gives all that it has: the rest is shared out
anew among the others.
"""

import math
from collections.abc import Mapping


def sample_shares(sizes: Mapping[str, int], budget: int, alpha: float) -> dict[str, float]:
    """The share, 0 to 1, of each domain's bytes that a sample of `budget` bytes has.

    It is min(1, λ · size**(alpha - 1)), with the λ for which the sample has its size; 1 for all when
    there is no more than that. 0 ≤ alpha ≤ 1: in proportion to the sizes at 1, alike at 0.
    """
    weights = {domain: size**alpha for domain, size in sizes.items()}
    # With alpha ≤ 1 it is the smallest domain that is short of its part first.
    order, left, scale = sorted(sizes, key=lambda domain: sizes[domain]), budget, math.inf
    for number, domain in enumerate(order):
        scale = left / math.fsum(weights[other] for other in order[number:])
        if scale * weights[domain] < sizes[domain]:
            break
        left -= sizes[domain]
        scale = math.inf
    return {domain: min(1.0, scale * weights[domain] / sizes[domain]) for domain in sizes}
