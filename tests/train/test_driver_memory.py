"""What the driver remembers of a run does not grow with the run."""

import gc
import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from panthalassa.config import Config, Energy
from panthalassa.energy import account as energy_account
from panthalassa.energy.account import Walk as EnergyWalk
from panthalassa.energy.account import account as account_energy
from panthalassa.energy.account import standing
from panthalassa.energy.ledger import EnergyLedger
from panthalassa.energy.ledger import read as read_energy
from panthalassa.energy.lines import Device, Metering, Steps, Window
from panthalassa.storage import open_storage
from panthalassa.train import goodput, run
from panthalassa.train.display import Display
from panthalassa.train.energy import entry
from panthalassa.train.events import Event, Launched, Lost, Metered, Saved, Step
from panthalassa.train.goodput import account, timeline
from panthalassa.train.goodput_ledger import GoodputLedger
from panthalassa.train.goodput_ledger import read as read_goodput
from panthalassa.train.run import History

T = 1_800_000_000.0
SECONDS = 6.0
"""Of a step: more than a line of a ledger holds, so that each step has its own."""
PART = 2_000


def events_of(number: int) -> list[Event]:
    """What a step tells the driver; now and then the ranks are lost, and ten steps repeated."""
    step = number - 10 * (number // 1000)
    at = T + SECONDS * number
    line = Steps(
        at=at, first=step, seconds=[SECONDS], tokens=[1024], joules=[40.0], data_wait=[0.0]
    )
    told: list[Event] = [
        Step(step, at, 2.5, 1.0, 1e-3, 1000, SECONDS, 0.5, 1024 / SECONDS, 0.4, 40.0),
        Metered(line),
    ]
    if number % 100 == 0:
        told.append(Saved(step, "/runs/small/step", 0.1, 1))
    if number % 50 == 0:
        device = Device(
            rank=0,
            seconds=300.0,
            joules={"step": 2000.0},
            mean_watts=6.7,
            peak_watts=7.0,
            counter=40.0 * number,
        )
        told.append(Metered(Window(at=at, refresh=0.02, devices={"GPU-0": device})))
    if number % 1000 == 999:
        told += [Lost("a rank died"), Launched(2, 1)]
    return told


def _ours(memory: tracemalloc.Snapshot) -> int:
    """Bytes that this package's code and this test have made; other threads of the session make some."""
    ours = (tracemalloc.Filter(True, "*/panthalassa/*"), tracemalloc.Filter(True, __file__))
    return sum(found.size for found in memory.filter_traces(ours).statistics("filename"))


def test_a_long_run_takes_no_more_memory_on_the_driver_than_a_short_one(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its sums are those of all steps."""
    monkeypatch.setattr(run, "RECENT", 100)
    for module in (goodput, energy_account):
        monkeypatch.setattr(module, "DETAILED", 100)
    folder, history = open_storage(str(tmp_path / "run")), History()
    console = Console(file=io.StringIO(), width=200)
    sizes = []
    metering = Metering(at=T, source="nvml counter", refresh=0.02, devices={"GPU-0": 0.0})
    with (
        GoodputLedger(folder, T, 1) as time_ledger,
        EnergyLedger(folder, Energy(), T, 1) as energy,
        Display(configure(tmp_path, "train.steps=1000000"), console) as display,
    ):
        energy.note(metering)
        tracemalloc.start()
        for number in range(1, 3 * PART + 1):
            for event in events_of(number):
                history.add(event)
                time_ledger.add(event)
                if line := entry(event):
                    energy.note(line)
                display.show(event)
            if number % PART == 0:
                assert time_ledger.goodput().restarts == number // 1000
                gc.collect()
                sizes.append(_ours(tracemalloc.take_snapshot()))
        tracemalloc.stop()
    assert sizes[2] - sizes[1] < 10 * PART, f"bytes: {sizes}"
    assert time_ledger.goodput() == account(read_goodput(folder))
    assert energy.account() == account_energy(read_energy(folder))
    assert energy.account().steps == len(standing(read_energy(folder)))
    assert history.sums.seconds == pytest.approx((3 * PART - 1) * SECONDS)
    assert history.sums.metered == 3 * PART - 1
    assert history.steps[-1].step == 3 * PART - 10 * 6


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=60))
def test_sums_of_old_steps_account_for_all_seconds_and_joules(
    pieces: list[tuple[int, int]],
) -> None:
    """Whatever is undone, and also when that goes back behind what is remembered."""
    times, joules = goodput.Walk(), EnergyWalk(detailed=2)
    whole, before = EnergyWalk(), goodput.DETAILED
    goodput.DETAILED = 2
    try:
        at, step, lines = 0.0, 1, []
        for back, count in pieces:
            step = max(1, step - back)
            at += 2.0 * count
            last, seconds = step + count - 1, 2.0 * count
            line = goodput.Steps(at=at, first=step, last=last, seconds=seconds, data_seconds=0.5)
            lines.append(line)
            times.take(line)
            energy = Steps(at=at, first=step, seconds=[2.0] * count, tokens=[8] * count,
                           joules=[5.0] * count, data_wait=[1.0] * count)  # fmt: skip
            joules.take(energy)
            whole.take(energy)
            step += count
        found = times.goodput()
        assert found.seconds == pytest.approx(at)
        spans = timeline(lines).spans
        expected = sum(span.end - span.start for span in spans if span.part == "lost")
        assert found.parts["lost"] == pytest.approx(expected)
        assert joules.account().joules == pytest.approx(whole.account().joules)
        assert joules.account().steps == whole.account().steps
    finally:
        goodput.DETAILED = before
