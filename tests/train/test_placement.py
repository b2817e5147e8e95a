"""Where ranks go: whole tensor-parallel groups, on nodes that have room and stay."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nodes import cluster_of

from panthalassa.config import Cluster
from panthalassa.stream.reader import READ_CPUS
from panthalassa.train.placement import Node, crowded, free, places, plan, whole

layouts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), max_size=8)


@given(layouts, st.integers(1, 8), st.integers(1, 40))
def test_as_many_whole_groups_as_there_is_room_for(
    layout: dict[str, int], tp_size: int, most: int
) -> None:
    ranks = plan(layout, tp_size, most)
    possible = sum(count // tp_size for count in layout.values())
    assert len(ranks) == min(possible, most // tp_size) * tp_size
    for node, count in Counter(ranks).items():
        assert count <= layout[node]
        assert count % tp_size == 0
    assert ranks == plan(dict(reversed(layout.items())), tp_size, most), "deterministic"


@given(layouts, st.integers(1, 40))
def test_no_node_more_than_needed(layout: dict[str, int], most: int) -> None:
    ranks = plan(layout, 1, most)
    taken = sorted(layout.values(), reverse=True)
    fewest = next((n for n in range(len(taken) + 1) if sum(taken[:n]) >= len(ranks)), 0)
    assert len(set(ranks)) == fewest


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.fixed_dictionaries({"CPU": st.integers(0, 8), "GPU": st.integers(0, 8)}),
        min_size=1,
    ),
    st.sampled_from([{"CPU": 1.0}, {"CPU": 0.25, "GPU": 1.0}, {"CPU": 2.5}]),
)
def test_ranks_fit_beside_a_reading_task(
    nodes: dict[str, dict[str, int]], rank: dict[str, float]
) -> None:
    found = places(nodes, rank)
    for node, count in found.items():
        assert all(count * amount <= nodes[node][name] for name, amount in rank.items())
        assert count >= 0
    left = max(have["CPU"] - found[node] * rank["CPU"] for node, have in nodes.items())
    assert left >= READ_CPUS or not any(found.values())


CLUSTER = Cluster(workers=8, cpus_per_worker=1.0)


def test_what_is_ours_counts_as_free_for_us_and_a_leaving_node_for_nobody() -> None:
    nodes = [
        Node("a", total={"CPU": 5.0}, free={"CPU": 3.0}),
        Node("b", total={"CPU": 4.0}, free={"CPU": 4.0}, leaving=True),
    ]
    assert free(nodes, CLUSTER) == {"a": 2}, "one place is left to reading tasks"
    assert free(nodes, CLUSTER, ours=["a"]) == {"a": 3}
    assert whole(nodes, CLUSTER) == {"a": 4}


def test_a_cluster_is_crowded_when_only_reading_keeps_a_group_out() -> None:
    full = Node("a", total={"CPU": 8.0}, free={})
    assert crowded([full], CLUSTER, 1)
    assert crowded([full], CLUSTER, 4)
    assert not crowded([full], CLUSTER, 3), "a third group has no place anyway"
    assert not crowded([full, Node("b", total={"CPU": 0.5}, free={})], CLUSTER, 1)
    assert not crowded([], CLUSTER, 1)


def test_nothing_is_no_place() -> None:
    assert plan(whole([], CLUSTER), 2, 8) == []
    assert free([Node("a", {}, {})], CLUSTER) == {"a": 0}


SURVEY = """
import sys
import ray
from panthalassa.train.placement import survey

ray.init(address=sys.argv[1], log_to_driver=False)
for _ in sys.stdin:
    print([(node.silent, node.refuses) for node in survey() if node.id == sys.argv[2]], flush=True)
"""


@pytest.mark.ray
def test_a_node_whose_raylet_is_gone_is_known_before_ray_notices() -> None:
    with cluster_of(1) as (nodes, [node]):
        asking = subprocess.Popen(
            [sys.executable, "-c", SURVEY, nodes.address, node.node_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert asking.stdin
        assert asking.stdout
        answers = (line for line in asking.stdout if line.startswith("["))  # Ray writes there, too
        with asking:
            asking.stdin.write("\n")
            assert next(answers) == "[(False, False)]\n"
            nodes.kill_raylet(node)
            asking.stdin.write("\n")
            assert next(answers) == "[(True, True)]\n"
            asking.stdin.close()
            asking.stdout.read()
