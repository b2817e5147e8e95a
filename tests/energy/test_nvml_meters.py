"""What the NVML meters promise, through the real nvidia-ml-py over a scripted power curve."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml  # type: ignore[import-untyped]
import pytest

from panthalassa.energy.meters import Absent, MeterLost
from panthalassa.energy.nvml import NvmlCounter, NvmlPower
from panthalassa.energy.sources import choose
from panthalassa.errors import ConfigError

if TYPE_CHECKING:
    from conftest import RaplTree
    from nvml import NvmlDouble

A, B = "GPU-0a", "GPU-0b"
LOST, FORBIDDEN = pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NO_PERMISSION
NO_COUNTER = [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    pytest.fail("what was waited for did not come")


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power meter samples only when it is read, at times that the test sets."""
    monkeypatch.setattr(NvmlPower, "period", None)


def assert_nvml_is_shut() -> None:
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def test_the_counter_gives_the_joules_since_the_start_of_the_meter(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 250)])
    nvml.go_to(100.0)
    with closing(NvmlCounter([A])) as meter:
        assert meter.read() == 0
        nvml.go_to(108.0)
        assert meter.read() == pytest.approx(2000)
        assert meter.read() == pytest.approx(2000)
        nvml.go_to(110.0)
        assert meter.read() == pytest.approx(2500)


def test_gpus_are_found_by_uuid_and_only_those_named_are_counted(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    nvml.add(B, [(0, 300)])
    nvml.add("MIG-0c", [(0, 7)])
    with (
        closing(NvmlCounter([B])) as second,
        closing(NvmlCounter([B, A, B])) as both,
        closing(NvmlCounter(["MIG-0c"])) as slice_,
    ):
        nvml.go_to(10.0)
        assert second.read() == pytest.approx(3000)
        assert both.read() == pytest.approx(4000)
        assert slice_.read() == pytest.approx(70)
        assert [m.devices for m in (second, both, slice_)] == [(B,), (B, A), ("MIG-0c",)]


def test_a_counter_that_falls_loses_the_meter_for_good(nvml: "NvmlDouble") -> None:
    gpu = nvml.add(A, [(0, 250)])
    with closing(NvmlCounter([A])) as meter:
        nvml.go_to(8.0)
        assert meter.read() == pytest.approx(2000)
        gpu.offset_mj = 0
        nvml.go_to(9.0)
        with pytest.raises(MeterLost, match=rf"{A}.*fell from 3000000 to 2250000 mJ"):
            meter.read()
        nvml.go_to(1000.0)
        with pytest.raises(MeterLost, match="fell from 3000000"):
            meter.read()


def test_a_fall_is_seen_behind_another_gpus_gain(nvml: "NvmlDouble") -> None:
    fallen = nvml.add(A, [(0, 1)])
    nvml.add(B, [(0, 100_000)])
    with closing(NvmlCounter([A, B])) as meter:
        fallen.offset_mj = 0
        nvml.go_to(100.0)
        with pytest.raises(MeterLost, match=rf"{A}.*fell"):
            meter.read()


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("kind", [NvmlCounter, NvmlPower])
@pytest.mark.parametrize(("code", "reason"), [(LOST, "GPU is lost"), (FORBIDDEN, "Permissions")])
def test_a_gpu_that_stops_answering_loses_the_meter_for_good(
    nvml: "NvmlDouble", kind: type[NvmlCounter | NvmlPower], code: int, reason: str
) -> None:
    nvml.add(A, [(0, 100)])
    gpu = nvml.add(B, [(0, 100)])
    with closing(kind([A, B], nvml.clock)) as meter:
        nvml.go_to(0.5)
        assert meter.read() == pytest.approx(100)
        gpu.energy_error = gpu.power_error = code
        nvml.go_to(1.0)
        with pytest.raises(MeterLost, match=f"{B}.*{reason}"):
            meter.read()
        gpu.energy_error = gpu.power_error = 0
        nvml.publish()
        with pytest.raises(MeterLost, match=f"{B}.*{reason}"):
            meter.read()


@pytest.mark.usefixtures("no_thread")
def test_power_is_integrated_by_trapezoid(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100), (10, 300)])
    nvml.add(B, [(0, 50)])
    with closing(NvmlPower([A, B], nvml.clock)) as meter:
        assert meter.read() == 0
        for seconds in (0.5, 1.0, 1.75, 2.5, 3.5, 4.0):
            nvml.go_to(seconds)
            ramp = 100 * seconds + 10 * seconds**2
            assert meter.read() == pytest.approx(ramp + 50 * seconds)


@pytest.mark.usefixtures("no_thread")
def test_power_that_was_not_sampled_for_long_is_not_made_up(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    with closing(NvmlPower([A], nvml.clock)) as meter:
        nvml.go_to(1.0)
        assert meter.read() == pytest.approx(100)
        nvml.go_to(2.25)
        with pytest.raises(MeterLost, match=r"not read for 1\.2 s"):
            meter.read()


def test_a_pulse_between_two_reads_is_caught_by_the_sampling_thread(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 0), (1, 0), (4, 300), (4.25, 0)])
    nvml.step = 0.25
    with closing(NvmlPower([A], nvml.clock)) as meter:
        wait_until(lambda: nvml.seconds is not None and nvml.seconds > 5)
        assert meter.read() == pytest.approx(450 + 37.5)


def test_power_is_sampled_twenty_times_a_second_or_more() -> None:
    assert NvmlPower.period is not None
    assert NvmlPower.period <= 1 / 20


def test_an_error_between_two_reads_is_kept_for_the_next(nvml: "NvmlDouble") -> None:
    gpu = nvml.add(A, [(0, 100)])
    with closing(NvmlPower([A], nvml.clock)) as meter:
        gpu.power_error = LOST
        wait_until(lambda: meter._lost is not None)
        ticks_at_loss = nvml.ticks
        gpu.power_error = 0
        nvml.publish()
        with pytest.raises(MeterLost, match="GPU is lost"):
            meter.read()
        assert nvml.ticks == ticks_at_loss


def test_close_ends_the_thread_shuts_nvml_and_the_meter(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    meter = NvmlPower([A], nvml.clock)
    assert "nvml power" in [thread.name for thread in threading.enumerate()]
    meter.close()
    meter.close()
    assert "nvml power" not in [thread.name for thread in threading.enumerate()]
    assert_nvml_is_shut()
    with pytest.raises(MeterLost, match="closed"):
        meter.read()


def test_closing_twice_leaves_another_meters_nvml_open(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    first = NvmlCounter([A])
    with closing(NvmlCounter([A])) as second:
        first.close()
        first.close()
        nvml.go_to(1.0)
        assert second.read() == pytest.approx(100)


def test_auto_takes_the_counter(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    meter = choose("auto", [A])
    assert isinstance(meter, NvmlCounter)
    assert meter.source == "nvml counter"
    meter.close()
    assert_nvml_is_shut()


@pytest.mark.parametrize("code", NO_COUNTER)
def test_auto_takes_the_power_when_there_is_no_counter(nvml: "NvmlDouble", code: int) -> None:
    nvml.add(A, [(0, 100)], energy_error=code)
    meter = choose("auto", [A])
    assert isinstance(meter, NvmlPower)
    assert meter.source == "nvml power"
    meter.close()
    assert_nvml_is_shut()


def test_a_forbidden_counter_is_not_replaced_by_the_power(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)], energy_error=FORBIDDEN)
    absent = choose("auto", [A])
    assert isinstance(absent, Absent)
    assert "Insufficient Permissions" in absent.reason


def test_a_gpu_without_counter_and_power_is_absent(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)], energy_error=NO_COUNTER[0], power_error=NO_COUNTER[0])
    absent = choose("auto", [A])
    assert isinstance(absent, Absent)
    assert absent.reason == f"no power source: {A}: nvmlDeviceGetPowerUsage: Not Supported"
    assert_nvml_is_shut()


def test_a_gpu_that_is_not_there_is_absent_and_named(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 100)])
    absent = choose("auto", [A, B])
    assert isinstance(absent, Absent)
    assert absent.reason == f"no power source: {B}: nvmlDeviceGetHandleByUUID: Not Found"
    assert_nvml_is_shut()
    with pytest.raises(ConfigError, match=rf"energy.source=nvml can not be read: {B}"):
        choose("nvml", [A, B])


def test_without_the_library_a_gpu_rank_has_no_figures_not_the_cpus(
    monkeypatch: pytest.MonkeyPatch, rapl: "RaplTree"
) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    rapl.add("intel-rapl:0", "package-0")
    absent = choose("auto", [A], rapl.root)
    assert isinstance(absent, Absent)
    assert absent.reason.startswith("no power source: NVML library not found")
    with pytest.raises(ConfigError, match=r"energy\.source=nvml .*NVML library not found"):
        choose("nvml", [A])


def test_nvml_asked_for_on_a_rank_without_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"energy\.source=nvml .*no GPU.*energy\.source=auto"):
        choose("nvml", [])


def test_the_library_is_found_as_the_drivers_is(
    nvml: "NvmlDouble", nvml_library: Path, tmp_path: Path
) -> None:
    """A fresh process and the loader's own search: nothing of nvidia-ml-py is replaced."""
    nvml.add(A, [(0, 250)])
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys\n"
        "from panthalassa.energy.sources import choose\n"
        "script = pathlib.Path(sys.argv[1])\n"
        f"meter = choose('auto', ['{A}'])\n"
        "script.write_text(script.read_text().replace('clock 0.0', 'clock 8.0'))\n"
        "print(meter.source, round(meter.read(), 3))\n"
    )
    command = [sys.executable, str(program), str(nvml.script)]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(nvml_library.parent),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("nvml counter 2000.0\n", "")


@pytest.mark.parametrize("energy_error", [0, NO_COUNTER[0]])
def test_real_time_runs_too(nvml: "NvmlDouble", energy_error: int) -> None:
    nvml.add(A, [(0, 250)], energy_error=energy_error)
    nvml.seconds = None
    nvml.publish()
    meter = choose("nvml", [A])
    assert not isinstance(meter, Absent)
    with closing(meter):
        first = meter.read()
        wait_until(lambda: meter.read() > first + 1)


def test_threads_that_read_at_once_do_not_spoil_each_others_joules(nvml: "NvmlDouble") -> None:
    nvml.add(A, [(0, 250)])
    nvml.add(B, [(0, 50)])
    reads, found = 5000, list[float]()

    def read(uuid: str) -> None:
        with closing(NvmlCounter([uuid])) as meter:
            found.extend(meter.read() for _ in range(reads))

    threads = [threading.Thread(target=read, args=(uuid,)) for uuid in (A, B, A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 4 * reads
