"""Power limits: what a sweep finds, and that they are put back whatever happens to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.config import Energy
from panthalassa.energy.ledger import EnergyLedger
from panthalassa.energy.lines import Metering, Steps
from panthalassa.energy.nvml import NvmlCounter
from panthalassa.energy.tune import Point, explain, front, tune, within
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage, open_storage

if TYPE_CHECKING:
    from nvml import NvmlDouble

A, B = "GPU-0a", "GPU-0b"
T = 1_700_000_000.0
STEP = 0.05

points = st.builds(
    Point, st.just(1.0), st.just(1), st.floats(1, 100).map(round), st.floats(1, 100).map(round)
)


@given(st.lists(points))
def test_the_front_has_every_point_that_no_other_beats(found: list[Point]) -> None:
    def beats(a: Point, b: Point) -> bool:
        no_worse = a.tokens_per_second >= b.tokens_per_second and a.j_per_token <= b.j_per_token
        return no_worse and (a.tokens_per_second, a.j_per_token) != (
            b.tokens_per_second,
            b.j_per_token,
        )

    best = front(found)
    assert set(best) == {p for p in found if not any(beats(other, p) for other in found)}


def test_only_steps_that_lie_in_the_time_whole_count() -> None:
    line = Steps(at=T + 10, first=1, seconds=[1.0] * 10, tokens=[5] * 10,
                 joules=[float(n) for n in range(10)], data_wait=[None] * 10)  # fmt: skip
    assert within([line], 200, T + 2.5, T + 5.5) == Point(200, 2, 5.0, 7 / 10)
    assert within([line], 200, T + 11, T + 20) is None


@pytest.fixture
def node(nvml: "NvmlDouble", nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> "NvmlDouble":
    """Two GPUs at 300 and 200 W, in real time, for other processes too."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    nvml.seconds, nvml.since = None, time.monotonic()
    nvml.add(A, [(0, 300)])
    nvml.add(B, [(0, 200)])
    return nvml


def limits() -> list[int]:
    """Of both GPUs, in W."""
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in (A, B)]
    found = [pynvml.nvmlDeviceGetPowerManagementLimit(handle) // 1000 for handle in handles]
    pynvml.nvmlShutdown()
    return found


@pytest.fixture
def run(node: "NvmlDouble", tmp_path: Path) -> Iterator[Storage]:
    """The folder of a run that does twenty steps a second as long as the test goes on."""
    storage, ending = open_storage(str(tmp_path / "run")), threading.Event()
    started = threading.Event()

    def train() -> None:
        with (
            closing(NvmlCounter([A, B])) as meter,
            EnergyLedger(storage, Energy(), time.time(), 1) as ledger,
        ):
            ledger.note(
                Metering(at=time.time(), source="nvml counter", refresh=0.02, devices={A: 0, B: 0})
            )
            started.set()
            step, began, before = 0, time.time(), 0.0
            while not ending.wait(STEP):
                step, now, joules = step + 1, time.time(), meter.read()
                ledger.note(Steps(at=now, first=step, seconds=[now - began], tokens=[100],
                                  joules=[joules - before], data_wait=[None],
                                  before={"other": 0.0}))  # fmt: skip
                began, before = now, joules

    thread = threading.Thread(target=train)
    thread.start()
    started.wait(30)
    yield storage
    ending.set()
    thread.join()


def test_a_sweep_finds_what_each_limit_takes_and_puts_the_limits_back(run: Storage) -> None:
    before, told = limits(), []
    found = tune(run, [250, 150], 1.0, told.append, settle=0.2)
    assert [point.watts for point in found] == [250, 150]
    for point, watts in zip(found, (250 + 200, 150 + 150), strict=True):
        taken = point.j_per_token * point.tokens_per_second
        assert taken == pytest.approx(watts, rel=0.05)
    assert limits() == before == [400, 400]
    assert len(told) == 2
    assert any("on the front" in text for _, text in explain(found))


def test_limits_are_put_back_when_the_sweep_is_killed(run: Storage, node: "NvmlDouble") -> None:
    command = [
        sys.executable,
        "-m",
        "panthalassa.cli",
        "energy",
        "tune",
        run.path(""),
        "--limits",
        "150",
    ]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait_for([150, 150])
        os.kill(sweep.pid, signal.SIGKILL)
        _wait_for([400, 400])
    finally:
        sweep.kill()
        sweep.wait()


def _wait_for(expected: list[int]) -> None:
    until = time.monotonic() + 120
    while limits() != expected:
        assert time.monotonic() < until, limits()
        time.sleep(0.05)


def test_without_permission_nothing_is_tried(run: Storage, node: "NvmlDouble") -> None:
    for gpu in node.gpus.values():
        gpu.limit_error = pynvml.NVML_ERROR_NO_PERMISSION
    node.publish()
    with pytest.raises(PanthalassaError, match=r"can not be set: GPU-0a.*takes.* root"):
        tune(run, [150], 1.0, lambda text: None)
    assert limits() == [400, 400]


def test_a_limit_that_the_gpus_do_not_take_is_refused(run: Storage) -> None:
    with pytest.raises(PanthalassaError, match=r"--limits 50: these GPUs take 100 to 400 W"):
        tune(run, [50], 1.0, lambda text: None)


def test_a_run_that_does_not_train_can_not_be_tuned(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with EnergyLedger(storage, Energy(), T, 1):
        pass
    with pytest.raises(PanthalassaError, match="is not training"):
        tune(storage, [150], 1.0, lambda text: None)
