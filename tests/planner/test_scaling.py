"""The same run on other numbers of GPUs: each as if it had been asked for, and why not on others."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from panthalassa.config import Model
from panthalassa.planner.assume import Assumed
from panthalassa.planner.hardware import cluster, gpu
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.memory import footprints
from panthalassa.planner.plan import Plan, planned
from panthalassa.planner.rank import rank
from panthalassa.planner.scaling import Scaling, scale

MODEL = Model(
    vocabulary_size=128, hidden_size=64, layers=2, heads=8, kv_heads=8, head_size=8, ffn_size=128
)
WORKLOAD = Workload(MODEL, sequence_length=64, global_batch=4, loss_chunk=64)
"""Samples for four data-parallel ranks: sixteen GPUs need tensor-parallel groups of four at least."""
PLACE = cluster(gpu("a100-80gb"), 16)


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces are kept in a home of its own, and so made once for all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def ask(memory: float = PLACE.gpu.memory) -> Plan:
    """A plan for sixteen GPUs of so many bytes."""
    place = replace(PLACE, gpu=replace(PLACE.gpu, memory=memory))
    ranking = rank(WORKLOAD, place, compiled=True)
    return planned(WORKLOAD, place, ranking, 1e12, Assumed(), True, None, "published runs")


@pytest.fixture(scope="module")
def found(_home: None) -> Scaling:
    return scale(ask())


def test_a_run_is_planned_on_powers_of_two_as_far_as_its_batch_allows(found: Scaling) -> None:
    assert [plan.cluster.gpus for plan in found.plans] == [1, 2, 4, 8, 16, 32]
    assert found.above == "no layout: 8 data-parallel ranks share global_batch=4"
    assert found.below == "there are none"
    for plan in found.plans:
        assert plan.workload == WORKLOAD
        assert plan.tokens == 1e12
        assert plan.cluster.gpus_per_node == min(8, plan.cluster.gpus)
        assert plan.best.rate <= found.best_rate
    days = [plan.expected_days for plan in found.plans]
    assert days[:4] == sorted(days[:4], reverse=True)


def test_what_a_rank_needs_elsewhere_is_what_a_trace_of_its_own_would_tell(found: Scaling) -> None:
    four, many = (found.plans[place] for place in (2, 5))
    for plan in (four, many):
        assert footprints(WORKLOAD, [plan.best.layout])[plan.best.layout] == plan.best.footprint
    sharded = Layout(4, 2, 1, 2, "none", keep_gathered=True)
    own, other = (footprints(WORKLOAD, [sharded], gpus=gpus)[sharded] for gpus in (None, 16))
    assert own == other


def test_the_fewest_gpus_are_those_on_which_it_fits(found: Scaling) -> None:
    reserve = Assumed().reserve
    leanest = {}
    for plan in found.plans[1:3]:
        leanest[plan.cluster.gpus] = min(one.footprint.peak for one in plan.ranking)
    assert leanest[2] > leanest[4]
    usable = (leanest[2] + leanest[4]) / 2
    memory = (usable + 1e9 * reserve.reserved_gb) / (1 - reserve.fragments)
    tight = scale(ask(memory))
    assert [plan.cluster.gpus for plan in tight.plans] == [4, 8, 16, 32]
    assert tight.below.startswith("on 2, the leanest layout needs ")
