"""Which ranks form a tensor-parallel group: neighbours inside a node, on any layout of nodes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.errors import ConfigError
from panthalassa.parallel.mesh import arrange

layouts = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40)


@given(layouts, st.integers(1, 8))
def test_groups_lie_inside_nodes_and_leave_out_as_few_as_can_be(
    nodes: list[str], tp_size: int
) -> None:
    sizes = Counter(nodes)
    most = sum(size // tp_size for size in sizes.values())
    if most == 0:
        with pytest.raises(ConfigError, match=f"no node has more than {max(sizes.values())}"):
            arrange(nodes, tp_size)
        return
    training = arrange(nodes, tp_size)
    assert len(training) == most * tp_size
    assert len(set(training)) == len(training)
    groups = [training[start : start + tp_size] for start in range(0, len(training), tp_size)]
    for group in groups:
        assert len({nodes[rank] for rank in group}) == 1
        assert group == sorted(group)
    assert arrange(nodes, tp_size) == training


def test_ranks_that_interleave_over_nodes_are_sorted_into_groups() -> None:
    """As Ray Train numbers them when several raylets share a host."""
    assert arrange("abababab", 2) == [0, 2, 4, 6, 1, 3, 5, 7]


def test_a_node_with_five_of_eight_left_trains_with_four() -> None:
    assert arrange("aaaaaaaabbbbb", 4) == [*range(12)]
    assert arrange("bbbbbaaaaaaaa", 4) == [0, 1, 2, 3, *range(5, 13)]
