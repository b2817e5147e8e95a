"""Ranks on nodes of any layout: those that make up whole groups train as if there were no others."""

from typing import Any

import pytest
from ranks import TinyRun, tiny
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.errors import ConfigError
from panthalassa.parallel.mesh import regroup

Trained = tuple[int, int, list[tuple[float, float]]] | None


def train_where_it_fits(nodes: str, config: Config) -> Trained:
    """Rank, spare ranks and curve of a rank that trains."""
    standing = regroup(nodes[dist.get_rank()], "127.0.0.1", config.parallel.tp_size)
    if not standing.trains:
        assert not dist.is_initialized()
        return None
    run = TinyRun(config)
    return dist.get_rank(), standing.spare, [run.step(step) for step in range(5)]


@pytest.fixture(scope="module")
def curve(ranks: Any) -> list[tuple[float, float]]:
    (found,) = ranks(1, train_where_it_fits, "a", tiny())
    return found[2]


@pytest.mark.parametrize(
    ("nodes", "training"),
    [
        ("aabb", [0, 1, 2, 3]),
        ("abab", [0, 2, 1, 3]),
        ("aaabb", [0, 1, None, 2, 3]),
        ("abb", [None, 0, 1]),
    ],
)
def test_ranks_beyond_whole_groups_stand_by_and_the_curve_stays(
    ranks: Any, curve: list[tuple[float, float]], nodes: str, training: list[int | None]
) -> None:
    found = ranks(len(nodes), train_where_it_fits, nodes, tiny("parallel.tp_size=2"))
    assert [rank[0] if rank else None for rank in found] == training
    for rank in found:
        if rank:
            assert rank[1] == training.count(None)
            for step, expected in zip(rank[2], curve, strict=True):
                assert step == pytest.approx(expected, rel=1e-4)


def refused(nodes: str, tp_size: int) -> str:
    with pytest.raises(ConfigError) as refusal:
        regroup(nodes[dist.get_rank()], "127.0.0.1", tp_size)
    return str(refusal.value)


def test_a_group_that_no_node_holds_is_refused_on_all_ranks(ranks: Any) -> None:
    for text in ranks(3, refused, "aab", 3):
        assert "parallel.tp_size=3 needs that many ranks on one node" in text
