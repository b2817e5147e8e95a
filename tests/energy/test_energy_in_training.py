"""Energy in the training loop, on real gloo ranks over scripted GPUs: each joule under its name."""

import ctypes
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml  # type: ignore[import-untyped]
import pytest
import torch
from loops import go, looping, open_run
from ranks import Ranks
from ray.exceptions import RayError
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.energy.account import account
from panthalassa.energy.lines import Line, Metering, Rest, Steps, StoodBy, Window
from panthalassa.energy.meters import Absent, MeterLost
from panthalassa.energy.sources import choose
from panthalassa.errors import ConfigError
from panthalassa.train import energy
from panthalassa.train.callback import Callback
from panthalassa.train.claim import Claim, claim
from panthalassa.train.energy import Energy, EnergyEnd, count_standby
from panthalassa.train.events import Metered, Notice, Step
from panthalassa.train.training_run import TrainingRun

if TYPE_CHECKING:
    from nvml import NvmlDouble

A, B, C = "GPU-0a", "GPU-0b", "GPU-0c"
WATTS = {A: 100, B: 30, C: 7}
VISIBLE = "CUDA_VISIBLE_DEVICES"


def publish(script: str, seconds: float, lost: tuple[str, ...] = ()) -> None:
    """The double's script at a moment: GPUs of WATTS, of which some do not answer."""
    lines = [f"clock {seconds!r}"]
    for uuid, watts in WATTS.items():
        error = pynvml.NVML_ERROR_GPU_IS_LOST if uuid in lost else 0
        lines.append(f"gpu {uuid} A100 {error} 0 3 0 5000 0.0 0:{watts}")
    draft = Path(f"{script}.draft")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(script)


def use_double(library: str, script: str, visible: list[str]) -> None:
    """This rank's NVML is the double, and it sees some of its GPUs."""
    pynvml.nvmlLib = ctypes.CDLL(library)
    os.environ["NVML_DOUBLE"] = script
    os.environ[VISIBLE] = visible[dist.get_rank()]


def claimed(library: str, script: str, visible: list[str], source: str) -> dict[str, Any]:
    if dist.get_rank() == 0:
        publish(script, 0.0)
    dist.barrier()
    use_double(library, script, visible)
    try:
        found = claim(looping(f"energy.source={source}"), torch.device("cpu"))
    except ConfigError as error:
        return {"error": str(error)}
    if not isinstance(found.meter, Absent):
        found.meter.close()
    return {"names": found.names, "blind": found.blind, "power": found.power}


@pytest.mark.parametrize(
    ("visible", "measured"),
    [
        ([A, B], [(A,), (B,)]),
        (["0,1,2", "0,1,2"], [(A, B, C), ()]),
        ([f"{C},{A}", f"{A},{B}"], [(C, A), (B,)]),
        (["", "0"], None),
    ],
)
def test_a_device_is_measured_by_the_lowest_rank_that_sees_it(
    ranks: Ranks, nvml_library: Path, tmp_path: Path, visible: list[str], measured: Any
) -> None:
    script = str(tmp_path / "script")
    found = ranks(2, claimed, str(nvml_library), script, visible, "nvml")
    if measured is None:
        assert all("sees no GPU" in rank["error"] for rank in found), "refused on all ranks"
        return
    assert [rank["names"] for rank in found] == measured
    assert not any(rank["blind"] for rank in found)
    if not measured[1]:
        assert found[1]["power"] == "other ranks measure the devices that this one sees"


def test_a_rank_that_stands_by_tells_what_its_gpu_takes(
    nvml: "NvmlDouble", monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.add(A, [(0, 60)])
    monkeypatch.setattr(energy, "WINDOW", 0.01)
    told: list[StoodBy] = []
    done = threading.Event()

    def post(events: list[Any]) -> None:
        told.extend(event.line for event in events)
        nvml.go_to(nvml.seconds + 1)  # type: ignore[operator]
        if len(told) == 3:
            done.set()
            raise RayError("the board is gone")

    meter = choose("nvml", [A])
    count_standby(Claim(meter, (A,), 0.0, lambda: meter), post)
    assert done.wait(60)
    for thread in threading.enumerate():
        if thread.name == "standby energy":
            thread.join(60)
    with pytest.raises(MeterLost, match="closed"):
        meter.read()
    assert [(line.device, line.joules) for line in told] == [(A, 0), (A, 60), (A, 60)]
    assert account(told).joules_by_phase["standby"] == pytest.approx(120)


class Script(Callback):
    """Moves the script's time: by a second in each step, and by more in what is between them."""

    def __init__(self, script: str, lost_at: int) -> None:
        self.script, self.lost_at, self.now, self.lost = script, lost_at, 0.0, ()

    def forward(self, seconds: float) -> None:
        self.now += seconds
        dist.barrier()  # all have read what was before
        if dist.get_rank() == 0:
            publish(self.script, self.now, self.lost)
        dist.barrier()

    def on_start(self, run: TrainingRun) -> None:
        self.forward(3.0)
        with run.spending("evaluation"):
            self.forward(2.0)

    def after_input(self, run: TrainingRun) -> None:
        if run.step + 1 == self.lost_at:
            self.lost = (B,)
        self.forward(1.0)

    def after_step(self, run: TrainingRun, step: Step) -> None:
        if run.step == 6:
            with run.spending("evaluation"):
                self.forward(5.0)
        self.forward(0.25)

    def on_end(self, run: TrainingRun) -> None:
        with run.spending("evaluation"):
            self.forward(4.0)


def trained(library: str, folder: str, lost_at: int, window: float, periods: float) -> Any:
    """What rank 0 posts of a run of ten steps on two ranks, of which each sees a GPU.

    periods: how many a step has to last for a figure of its own.
    """
    script = f"{folder}/script"
    if dist.get_rank() == 0:
        publish(script, 0.0)
    dist.barrier()
    use_double(library, script, [A, B])
    energy.WINDOW, energy.PERIODS = window, periods  # type: ignore[assignment]
    config: Config = looping("train.steps=10", "energy.source=nvml", "checkpoint.every=1000")
    measured = Energy(claim(config, torch.device("cpu")))
    run = open_run(config, folder)
    events = go(run, measured, Script(script, lost_at), EnergyEnd(measured))
    told = [event.text for event in events if isinstance(event, Notice)]
    steps = [event.joules for event in events if isinstance(event, Step)]
    return [event.line for event in events if isinstance(event, Metered)], told, steps


def run_of(
    ranks: Ranks, library: Path, folder: Path, lost_at: int, window: float, periods: float
) -> Any:
    lines: list[Line]
    arguments = (str(library), str(folder), lost_at, window, periods)
    (lines, told, steps), _ = ranks(2, trained, *arguments)
    return lines, told, steps


def test_the_sums_of_all_ranks_are_under_the_names_of_what_they_were_spent_on(
    ranks: Ranks, nvml_library: Path, tmp_path: Path
) -> None:
    lines, told, figures = run_of(ranks, nvml_library, tmp_path, 0, 1e9, periods=1e9)
    (metering,) = (line for line in lines if isinstance(line, Metering))
    assert metering.devices == {A: 5.0, B: 5.0}, "joules that they had counted before"
    steps = [line for line in lines if isinstance(line, Steps)]
    assert [line.first for line in steps] == list(range(1, 11))
    seconds = [1.0, *[1.25] * 5, 1.0, *[1.25] * 3]  # with what lies between, if it has no name
    assert [line.joules for line in steps] == [[pytest.approx(130 * s)] for s in seconds]
    assert steps[0].before == {
        "start": pytest.approx(390),
        "evaluation": pytest.approx(260),
        "other": 0,
    }
    assert steps[6].before == {"evaluation": pytest.approx(650), "other": pytest.approx(32.5)}
    (rest,) = (line for line in lines if isinstance(line, Rest))
    assert rest.joules == {"evaluation": pytest.approx(520), "other": pytest.approx(32.5)}
    (window,) = (line for line in lines if isinstance(line, Window))
    assert {name: device.rank for name, device in window.devices.items()} == {A: 0, B: 1}
    for name, device in window.devices.items():
        whole = 3 + 2 + 10 + 10 * 0.25 + 5 + 4
        assert sum(device.joules.values()) == pytest.approx(WATTS[name] * whole)
        assert device.counter == pytest.approx(5 + WATTS[name] * whole)
    found = account(lines)
    assert found.joules == pytest.approx(130 * whole)
    assert set(figures) == {None}, "each step is too short for a figure of its own; the sums stand"
    assert sum("gets no figure of its own" in text for text in told) == 1
    assert any("2 devices in all" in text for text in told)


def test_a_gpu_that_is_lost_leaves_steps_without_joules_and_the_run_goes_on(
    ranks: Ranks, nvml_library: Path, tmp_path: Path
) -> None:
    lines, told, figures = run_of(ranks, nvml_library, tmp_path, 4, 0.0, periods=0)
    assert figures[1:3] == [pytest.approx(162.5)] * 2
    assert figures[3:] == [None] * 7
    steps = [line for line in lines if isinstance(line, Steps)]
    assert [line.joules[0] is None for line in steps] == [False] * 3 + [True] * 7
    assert sum("energy of GPU-0b is not known" in text for text in told) == 1
    windows = [line for line in lines if isinstance(line, Window)]
    assert len(windows) == 11, "one behind each step, and one at the end"
    assert windows[-1].devices[A].problem is None
    assert windows[-1].devices[B].counter is None
    found = account(lines)
    assert found.steps == 3
    assert found.uncovered_seconds > 0
