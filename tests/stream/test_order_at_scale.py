"""What an order costs in memory, where it is asked and however large its corpus is."""

import tracemalloc

import numpy as np
import pytest
from orders import manifest_of

from panthalassa.stream.order import Mixture, Order


@pytest.mark.parametrize("position", [10**6, 10**12, 10**18])
def test_seeking_anywhere_costs_the_same(position: int) -> None:
    """In memory: a walk, or a table of what was passed, would show."""
    order = Order(manifest_of({"a": [[8] * 50], "b": [[8] * 5]}), 8, Mixture(), 0)
    order.locate(np.arange(64))
    tracemalloc.start()
    try:
        found = order.locate(np.arange(position, position + 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.row) == 64
    assert peak < 1 << 18


def test_the_order_of_a_million_row_groups_keeps_little_and_is_asked_anywhere() -> None:
    domains = {f"d{number:03d}": [[4] * 1000] * 10 for number in range(100)}
    manifest = manifest_of(domains)
    tracemalloc.start()
    try:
        order = Order(manifest, 8, Mixture(3.0), 0)
        found = order.locate(np.arange(10**9, 10**9 + 1024))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(len(shard.row_groups) for shard in manifest.shards) == 10**6
    assert len(np.unique(found.domain)) == 100
    assert kept < 50e6
    assert peak < 100e6
