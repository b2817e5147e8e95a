"""Which GPUs a process is measured by: those that CUDA shows it."""

import itertools
from contextlib import closing
from typing import TYPE_CHECKING

import pynvml  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panthalassa.energy.meters import MeterLost
from panthalassa.energy.nvml import NvmlCounter, NvmlPower, periods, visible_gpus
from panthalassa.energy.sources import choose

if TYPE_CHECKING:
    from nvml import NvmlDouble

GPUS = ["GPU-8932f937", "GPU-89aa0001", "GPU-c0ffee00"]
MIG = "MIG-41b35014"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def node(nvml: "NvmlDouble") -> "NvmlDouble":
    """Three GPUs alike, and a slice."""
    for uuid in GPUS:
        nvml.add(uuid, [(0, 100)])
    nvml.add(MIG, [(0, 7)])
    return nvml


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (None, GPUS),
        ("", []),
        ("NoDevFiles", []),
        ("0", GPUS[:1]),
        ("2,0", [GPUS[2], GPUS[0]]),
        (" 1 , 2 ", GPUS[1:]),
        ("0,-1,1", GPUS[:1]),
        ("1,7,0", [GPUS[1]]),
        ("0,0", GPUS[:1]),
        (GPUS[1], [GPUS[1]]),
        ("GPU-c,GPU-8932", [GPUS[2], GPUS[0]]),
        ("GPU-89", []),
        (f"{MIG}", [MIG]),
        (f"{MIG},1", [MIG, GPUS[1]]),
    ],
)
def test_a_list_of_devices_is_read_as_cuda_reads_it(given: str | None, seen: list[str]) -> None:
    assert visible_gpus({} if given is None else {VISIBLE: given}) == seen


@given(st.lists(st.sampled_from(range(3)), unique=True))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_indices_and_uuids_name_the_same_gpus(node: "NvmlDouble", indices: list[int]) -> None:
    by_index = visible_gpus({VISIBLE: ",".join(map(str, indices))})
    by_uuid = visible_gpus({VISIBLE: ",".join(GPUS[index] for index in indices)})
    assert by_index == by_uuid == [GPUS[index] for index in indices]


def test_an_index_among_gpus_of_several_kinds_is_not_guessed(node: "NvmlDouble") -> None:
    node.gpus[GPUS[2]].name = "NVIDIA-H100"
    node.publish()
    with pytest.raises(MeterLost, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_gpus({VISIBLE: "0"})
    assert visible_gpus({VISIBLE: "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == GPUS[:1]
    assert visible_gpus({VISIBLE: GPUS[2]}) == [GPUS[2]]


def test_a_rank_that_computes_on_the_cpu_can_measure_the_gpus_that_it_sees(
    node: "NvmlDouble", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, f"2,{MIG}")
    meter = choose("nvml", None)
    assert isinstance(meter, NvmlCounter)
    with closing(meter):
        node.go_to(10.0)
        assert meter.read_each() == pytest.approx((1000, 70))
        assert meter.devices == (GPUS[2], MIG)


@pytest.mark.parametrize("refresh", [0.02, 0.1])
def test_the_refresh_period_of_the_counter_is_found(node: "NvmlDouble", refresh: float) -> None:
    node.gpus[GPUS[0]].refresh = refresh
    node.gpus[GPUS[1]].refresh = refresh / 2
    node.seconds = None
    node.publish()
    meter = choose("nvml", GPUS[:2])
    assert isinstance(meter, NvmlCounter)
    with closing(meter):
        meter._threads[0].join()
        assert not meter.assumed
        assert meter.refresh == pytest.approx(refresh, rel=0.3), "the slowest of its devices"


@given(
    st.floats(0.005, 0.1),
    st.lists(st.floats(0.0005, 0.004) | st.floats(0.0005, 0.3), min_size=2, max_size=200),
)
def test_no_renewal_is_missed_between_two_that_count(period: float, gaps: list[float]) -> None:
    looks = list(itertools.accumulate(gaps))
    renewals = [
        (before, after)
        for before, after in itertools.pairwise(looks)
        if before // period != after // period
    ]
    for seconds in periods(renewals):
        assert 0.83 * period < seconds < 1.26 * period


def test_a_watcher_that_is_not_held_up_counts_each_time() -> None:
    renewals = [(n * 0.02 - 0.001, n * 0.02) for n in range(1, 20)]
    assert periods(renewals) == pytest.approx([0.02] * 18)


def test_a_counter_that_stands_still_is_taken_for_the_slowest(node: "NvmlDouble") -> None:
    meter = choose("nvml", GPUS[:1])
    assert isinstance(meter, NvmlCounter)
    with closing(meter):
        meter._threads[0].join()
        assert (meter.refresh, meter.assumed) == (0.1, True)


def test_the_power_of_the_moment_goes_before_a_mean(
    node: "NvmlDouble", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NvmlPower, "period", None)
    gpu = node.gpus[GPUS[0]]
    gpu.field_error, gpu.power_error = 0, pynvml.NVML_ERROR_UNKNOWN
    node.publish()
    with closing(NvmlPower(GPUS[:1], node.clock)) as meter:
        node.go_to(0.5)
        assert meter.read() == pytest.approx(50)
