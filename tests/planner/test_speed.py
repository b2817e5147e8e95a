"""The roofline: what must hold whatever the factors are."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.planner.calibration import factors
from panthalassa.planner.counts import Arrangement, Collective, Shape, count, shape
from panthalassa.planner.hardware import Cluster, cluster, gpu
from panthalassa.planner.speed import Speed, duration, speed


def lay(gpus: int, tp: int, replicas: int, **other: Any) -> Arrangement:
    """With as many copies as there is room for."""
    copies = min(replicas, gpus // tp)
    return Arrangement(gpus=gpus, gpus_per_node=8, tp=tp, replicas=copies, **other)


layouts = st.builds(
    lay,
    gpus=st.sampled_from([8, 64, 512]),
    tp=st.sampled_from([1, 2, 4, 8]),
    replicas=st.sampled_from([1, 2]),
    sequence=st.sampled_from([512, 4096]),
    global_batch=st.sampled_from([512, 4096]),
    micro_batch=st.integers(1, 8),
    recompute=st.sampled_from(["none", "alternate", "full"]),
    keep_gathered=st.booleans(),
    fused=st.booleans(),
)
names = st.sampled_from(["mpt-125m", "mpt-7b", "llama3-70b"])


def predict(name: str, laid: Arrangement, place: Cluster | None = None) -> Speed:
    place = place or cluster(gpu("a100-80gb"), laid.gpus)
    return speed(count(shape(name), laid), place, factors())


@given(names, layouts)
def test_parts_add_up_and_every_one_is_bound_by_something(name: str, laid: Arrangement):
    found = predict(name, laid)
    assert sum(part.seconds for part in found.parts.values()) == pytest.approx(found.step_seconds)
    assert all(part.seconds >= 0 and part.bound for part in found.parts.values())
    assert 0 < found.mfu <= found.hfu < 1
    assert found.low < found.tokens_per_second_per_gpu < found.high
    everything = found.tokens_per_second_per_gpu * found.step_seconds * laid.gpus
    assert everything == pytest.approx(laid.global_batch * laid.sequence)


@given(names, layouts, st.sampled_from(["peak", "bandwidth", "link", "network"]))
def test_better_hardware_is_never_slower(name: str, laid: Arrangement, what: str):
    place = cluster(gpu("a100-80gb"), laid.gpus)
    if what == "network":
        better = replace(place, network=2 * place.network)
    else:
        better = replace(place, gpu=replace(place.gpu, **{what: 2 * getattr(place.gpu, what)}))
    assert predict(name, laid, better).step_seconds <= predict(name, laid, place).step_seconds


@given(names, layouts)
def test_recomputation_trains_slower_and_counts_only_as_hardware_flops(
    name: str, laid: Arrangement
):
    without, full = (predict(name, replace(laid, recompute=how)) for how in ("none", "full"))
    assert full.mfu < without.mfu
    assert without.hfu == without.mfu
    assert full.hfu / full.mfu == pytest.approx(4 / 3, rel=0.13)  # the head is not computed again


def test_a_ring_takes_what_its_slowest_link_takes():
    place = cluster(gpu("a100-80gb"), 64)
    known = replace(factors(), hop_seconds=0.0)
    inside = Collective("all_gather", 8e9, 1, ranks=8, ranks_per_node=8, waits=True)
    assert duration(inside, place, known) == pytest.approx(7e9 / (300e9 * known.link))
    # eight ranks of a node have eight network cards, one has one
    across = replace(inside, ranks=64)
    assert duration(across, place, known) == pytest.approx(
        63 / 64 * 8e9 / (8 * 25e9 * known.network)
    )
    alone = replace(inside, ranks_per_node=1)
    assert duration(alone, place, known) == pytest.approx(7e9 / (25e9 * known.network))
    summed = replace(inside, kind="all_reduce")
    assert duration(summed, place, known) == 2 * duration(inside, place, known)
    sent = replace(alone, kind="send", ranks=2)
    assert duration(sent, place, known) == pytest.approx(8e9 / (25e9 * known.network))
    distant = replace(across, calls=10)
    assert duration(distant, place, factors()) - duration(across, place, known) == pytest.approx(
        10 * 9 * factors().hop_seconds
    )


def test_communication_that_does_not_fit_beside_computation_is_exposed():
    laid = Arrangement(64, 8, 512, 64, 1)
    counts = count(shape("llama3-70b"), laid)
    place, known = cluster(gpu("a100-80gb"), 64), factors()
    slow = speed(counts, replace(place, network=1e9), known)
    parts = {name: part.seconds for name, part in slow.parts.items()}
    moved = sum(duration(one, replace(place, network=1e9), known) for one in counts.collectives)
    room = sum(
        parts[name] for name in ("matrix products", "attention", "elementwise", "kernel gaps")
    )
    assert parts["exposed communication"] == pytest.approx(moved - (1 - known.contention) * room)
    assert slow.bound == "network between nodes"


def test_tensor_parallelism_of_a_model_that_fits_costs_more_than_it_gives():
    model = Shape.of(Model(preset="panthalassa-12b"))
    place = cluster(gpu("a100-80gb"), 512)
    rates = [
        speed(
            count(model, Arrangement(512, 8, 4096, 2048, 4, tp=tp, recompute="full")),
            place,
            factors(),
        ).tokens_per_second_per_gpu
        for tp in (1, 2, 4, 8)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.75 * rates[0]


def test_the_public_bar_of_13_b_on_a100s():
    """2,150 tokens/s/GPU with FSDP and compilation (pytorch.org/blog/maximizing-training-throughput)."""
    laid = Arrangement(128, 8, 4096, 256, 2, fused=True)
    rate = predict("llama2-13b", laid).tokens_per_second_per_gpu
    assert rate == pytest.approx(2150, rel=0.1)


def test_hardware_that_was_never_measured_is_refused():
    place = cluster(gpu("a100-80gb"), 8)
    other = replace(place, gpu=replace(place.gpu, generation="blackwell"))
    with pytest.raises(ConfigError, match="no factors for its generation 'blackwell'"):
        predict("mpt-7b", Arrangement(8, 8, 2048, 32, 2), other)
