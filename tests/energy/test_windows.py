"""What windows promise: nested and overlapping ones that add up, and a mark instead of a guess."""

from contextlib import closing
from typing import TYPE_CHECKING

import pynvml  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panthalassa.energy.meters import Absent, Meter, MeterLost, bound
from panthalassa.energy.nvml import NvmlCounter
from panthalassa.energy.windows import RETRY, Windows

if TYPE_CHECKING:
    from nvml import NvmlDouble

A = "GPU-0a"


def open_windows(nvml: "NvmlDouble") -> Windows:
    def renew() -> Meter | Absent:
        try:
            return NvmlCounter([A])
        except MeterLost as error:
            return Absent(str(error))

    return Windows(NvmlCounter([A]), renew, nvml.clock)


def test_nested_and_overlapping_windows_each_get_their_own_energy(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    with closing(open_windows(nvml)) as windows:
        windows.begin("run")
        nvml.go_to(1.0)
        windows.begin("step")
        nvml.go_to(3.0)
        windows.begin("evaluation")
        nvml.go_to(4.0)
        step = windows.end("step")
        nvml.go_to(6.0)
        evaluation, run = windows.end("evaluation"), windows.end("run")
    assert [w.joules for w in (step, evaluation, run)] == pytest.approx([300, 300, 600])
    assert [w.seconds for w in (step, evaluation, run)] == pytest.approx([3, 3, 6])
    assert step.source == "nvml counter"
    assert step.bound == pytest.approx(0.05 + 2 * 0.1 / 3)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.01, 5)), max_size=30))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_however_windows_overlap_each_has_the_energy_of_its_time(
    nvml: "NvmlDouble", actions: list[tuple[str, float]]
) -> None:
    nvml.go_to(0.0)
    nvml.add(A, [(0, 70)])
    began: dict[str, float] = {}
    with closing(open_windows(nvml)) as windows:
        for name, seconds in actions:
            assert nvml.seconds is not None
            if name in began:
                expected = 70 * (nvml.seconds - began.pop(name))
                assert windows.end(name).joules == pytest.approx(expected, abs=2e-3)
            else:
                began[name] = nvml.seconds
                windows.begin(name)
            nvml.go_to(nvml.seconds + seconds)


def test_windows_that_share_a_reading_leave_no_gap(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    with closing(open_windows(nvml)) as windows:
        windows.begin("first")
        nvml.go_to(2.0)
        now = windows.sample()
        nvml.go_to(2.5)
        first = windows.end("first", now)
        windows.begin("second", now)
        nvml.go_to(3.0)
        assert (first.joules, windows.end("second").joules) == pytest.approx((200, 100))


def test_a_window_that_is_open_or_not_is_said(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    with closing(open_windows(nvml)) as windows:
        windows.begin("step")
        with pytest.raises(ValueError, match="'step' is open"):
            windows.begin("step")
        windows.end("step")
        with pytest.raises(ValueError, match="no window 'step' is open"):
            windows.end("step")


def test_a_counter_that_falls_marks_the_windows_around_it_and_later_ones_measure_again(
    nvml: "NvmlDouble",
) -> None:
    gpu = nvml.add(A, [(0, 100)])
    with closing(open_windows(nvml)) as windows:
        windows.begin("around")
        nvml.go_to(1.0)
        gpu.offset_mj = 0
        nvml.go_to(2.0)
        windows.begin("inside")
        nvml.go_to(2.0 + RETRY + 1)
        inside = windows.end("inside")
        windows.begin("later")
        nvml.go_to(20.0)
        later, around = windows.end("later"), windows.end("around")
    assert inside.joules is None
    assert inside.problem is not None
    assert "the energy counter fell" in inside.problem
    assert around.joules is None
    assert around.problem is not None
    assert later.joules == pytest.approx(700)
    assert later.problem is None


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_gpu_that_stays_away_leaves_its_windows_without_joules(
    nvml: "NvmlDouble", code: int
) -> None:
    gpu = nvml.add(A, [(0, 100)])
    with closing(open_windows(nvml)) as windows:
        gpu.energy_error = code
        for second in (1.0, 15.0, 30.0):
            nvml.go_to(second)
            windows.begin("step")
            nvml.go_to(second + 5)
            found = windows.end("step")
            assert found.joules is None
            assert found.problem is not None


def test_the_bound_is_that_of_the_sensor_and_of_a_refresh_period_at_each_end() -> None:
    assert bound(refresh=0.1, seconds=10) == pytest.approx(0.05 + 0.02)
    assert bound(refresh=0.02, seconds=10, windows=5) == pytest.approx(0.05 + 0.02)
    assert bound(refresh=0.02, seconds=0) == float("inf")
