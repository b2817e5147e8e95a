"""The account of a run's energy: known answers, and simulated histories in which each joule is known."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metered import A, B, T, metering, steps_of, text_of

from panthalassa.config import Energy
from panthalassa.energy.account import account, so_far, standing
from panthalassa.energy.devices import Devices
from panthalassa.energy.ledger import DETAIL, FOLDER, EnergyLedger, Walk, read, walk
from panthalassa.energy.lines import (
    Began,
    Device,
    Joules,
    Line,
    Metering,
    Rest,
    Steps,
    StoodBy,
    Window,
    merged,
)
from panthalassa.energy.table import explain_nodes
from panthalassa.line_ledger import Ended, Lost, Waited
from panthalassa.storage import open_storage


def test_an_undisturbed_run_has_its_energy_by_phase() -> None:
    lines = [
        Began(at=T, pue=1.5, grid_kg_per_kwh=0.4),
        metering(1, a=0.0),
        steps_of(14, 1, [100.0] * 10, before={"start": 40.0, "evaluation": 30.0, "other": 1.0}),
        steps_of(25, 11, [110.0] * 10, before={"checkpoint": 20.0, "other": 0.0}),
        Rest(at=T + 27, joules={"evaluation": 5.0, "checkpoint": 4.0}),
        Ended(at=T + 28),
    ]
    found = account(lines)
    assert found.joules == pytest.approx(2200)
    assert {phase: joules for phase, joules in found.joules_by_phase.items() if joules} == {
        "productive": 2100, "start": 40, "evaluation": 35, "checkpoint": 24, "other": 1,
    }  # fmt: skip
    assert (found.j_per_iteration, found.j_per_token) == (105, 10.5)
    assert (found.mean_watts, found.peak_watts) == (105, 110)
    assert found.bound == pytest.approx(0.05 + 2 * 0.02 * 2 / 20), "two stretches of steps"
    assert found.kwh == pytest.approx(2200 / 3.6e6)
    assert found.facility_kwh == pytest.approx(1.5 * found.kwh)
    assert found.carbon_kg == pytest.approx(0.4 * 1.5 * found.kwh)
    assert found.uncovered_seconds == 0
    told = text_of(found)
    assert "energy.pue 1.5" in told
    assert "energy.grid_kg_per_kwh 0.4" in told
    assert "105.00 ± 5.4%" in told


def test_the_peak_is_found_where_no_second_passes_without_an_evaluation() -> None:
    short = [
        Steps(at=T + 12 + n, first=2 + n, seconds=[0.4], tokens=[10], joules=[160.0],
              data_wait=[0.0], before={"evaluation": 9.0})
        for n in range(9)
    ]  # fmt: skip
    found = account([Began(at=T), metering(1, a=0.0), steps_of(11, 1, [100.0]), *short])
    assert found.mean_watts == pytest.approx((100 + 9 * 160) / (1 + 9 * 0.4))
    assert found.peak_watts == pytest.approx(400)
    just_short = account([Began(at=T), metering(1, a=0.0), steps_of(11, 1, [100.0]), *short[:2]])
    assert just_short.peak_watts == just_short.mean_watts, "never less"


def test_devices_are_summed_by_node(tmp_path: Path) -> None:
    def window(**joules: float) -> Window:
        devices = {
            name: Device(rank=0, seconds=10, joules={"step": spent}, mean_watts=None,
                         peak_watts=None, counter=None, node=name[0])
            for name, spent in joules.items()
        }  # fmt: skip
        return Window(at=T, refresh=0.02, devices=devices)

    with EnergyLedger(open_storage(str(tmp_path)), Energy(), T, 1) as ledger:
        for line in (window(a1=1.0, a2=2.0, b1=30.0), window(a1=1.0, a2=2.0, b1=30.0)):
            ledger.note(line)
        ledger.write_detail()
    run, without_windows = open_storage(str(tmp_path)), Walk()
    first, second = (" ".join(text.split()) for _, text in explain_nodes(walk(run).devices))
    assert (first, second) == ("60.0 J of 1 device in b", "6.0 J of 2 devices in a")
    for line in read(run):
        if not isinstance(line, Window):
            without_windows.take(line)
    assert list(explain_nodes(without_windows.devices)) == []
    assert "b,b1,0,20.0,60.0" in (tmp_path / FOLDER / DETAIL).read_text()


def test_without_a_power_source_nothing_is_claimed() -> None:
    found = account([Began(at=T), Ended(at=T + 9)])
    assert (found.j_per_iteration, found.source, found.mean_watts) == (None, None, None)
    assert text_of(found).startswith("energy not measured: no rank had a power source")


def test_nothing_read_is_not_zero() -> None:
    lines = [Began(at=T, pue=1.2, grid_kg_per_kwh=0.4), metering(0, a=None), Ended(at=T + 9)]
    found = account(lines)
    assert text_of(found).startswith("energy not known: nothing was read of 1 device")
    assert " 0 k" not in text_of(found)


def test_repeated_steps_and_what_the_counters_saw_between_attempts_are_lost() -> None:
    lines = [
        Began(at=T),
        metering(1, a=500.0),
        steps_of(11, 1, [100.0] * 8, before={"start": 20.0}),
        Lost(at=T + 14, planned=False),
        metering(20, a=500 + 20 + 800 + 150.0),
        steps_of(27, 5, [100.0] * 6, before={"start": 30.0}),
        Rest(at=T + 28, joules={}),
    ]
    found = account(lines)
    assert [step.step for step in standing(lines)] == list(range(1, 11))
    assert found.joules_by_phase["productive"] == 1000
    assert found.joules_by_phase["lost"] == pytest.approx(400 + 150 + 30)
    assert found.joules_by_phase["start"] == 20
    assert found.uncovered_seconds == 0


def test_a_device_that_is_gone_leaves_seconds_that_are_not_covered() -> None:
    lines = [
        metering(1, a=0.0, b=0.0),
        steps_of(11, 1, [100.0] * 10),
        Lost(at=T + 12, planned=False),
        metering(21, a=500 + 60.0),
        steps_of(31, 11, [50.0] * 10),
    ]
    found = account(lines)
    assert found.joules_by_phase["lost"] == pytest.approx(60), "of the one that is still there"
    assert found.uncovered_seconds == pytest.approx(5), "half of ten seconds"
    assert "5.0 s, in which energy is not known" in text_of(found)


def test_a_counter_that_was_reset_between_attempts_tells_nothing() -> None:
    lines = [
        metering(1, a=900.0),
        steps_of(11, 1, [100.0] * 10),
        Lost(at=T + 12, planned=False),
        metering(21, a=50.0),
        steps_of(31, 11, [50.0] * 10),
    ]
    found = account(lines)
    assert found.joules == pytest.approx(1500)
    assert found.uncovered_seconds == pytest.approx(10)


def test_a_planned_restart_is_a_start_and_waiting_for_nodes_is_standing_by() -> None:
    lines = [
        metering(1, a=0.0),
        steps_of(11, 1, [100.0] * 10),
        Lost(at=T + 11, planned=True),
        Waited(at=T + 17, seconds=6.0),
        metering(21, a=1000 + 500.0),
        steps_of(31, 11, [50.0] * 10, before={"start": 8.0}),
        StoodBy(at=T + 31, device=B, seconds=10.0, joules=70.0),
    ]
    phases = account(lines).joules_by_phase
    assert phases["standby"] == pytest.approx(300 + 70)
    assert phases["start"] == pytest.approx(200 + 8)
    assert phases["lost"] == 0


def test_between_two_commands_others_may_have_used_the_devices() -> None:
    lines = [
        Began(at=T),
        metering(1, a=0.0),
        steps_of(11, 1, [100.0] * 10),
        Began(at=T + 9000),
        metering(9001, a=1e6),
        steps_of(9011, 11, [100.0] * 10),
    ]
    assert account(lines).joules == pytest.approx(2000)


def test_steps_without_joules_are_left_out_of_the_figures_and_counted() -> None:
    problem = "GPU-0a: the energy counter fell"
    device = Device(
        rank=0, seconds=8, joules={"step": 800}, mean_watts=100, peak_watts=101, counter=None,
        problem=problem,
    )  # fmt: skip
    lines: list[Line] = [
        metering(1, a=0.0),
        steps_of(11, 1, [100.0, None, None, *[100.0] * 7]),
        window := Window(at=T + 11, refresh=0.02, devices={A: device}),
    ]
    found = account(lines)
    assert (found.j_per_iteration, found.steps) == (100, 8)
    assert found.uncovered_seconds == 2
    assert found.marked == {problem: 1}
    devices = Devices()
    devices.take(window)
    (row,) = devices.rows()
    assert (row["device"], row["joules"], row["peak_watts"]) == (A, 800, 101)


def test_what_a_killed_command_did_not_write_is_not_covered() -> None:
    """It was killed behind its last line, while it waited for nodes after a loss."""
    lines = [
        Began(at=T),
        metering(1, a=0.0),
        steps_of(11, 1, [100.0] * 10),
        Lost(at=T + 12, planned=False),
        Waited(at=T + 92, seconds=80),
        Began(at=T + 100),
        metering(130, a=0.0),
        steps_of(141, 6, [100.0] * 10),
        Ended(at=T + 143),
    ]
    assert account(lines).uncovered_seconds == pytest.approx(92 - 11)


def test_seconds_before_the_meters_are_told() -> None:
    lines = [Began(at=T), metering(30, a=0.0), steps_of(41, 1, [100.0] * 10), Ended(at=T + 42)]
    found = account(lines)
    assert (found.unmetered_seconds, found.uncovered_seconds) == (30, 0)
    assert "30.0 s, until commands had started their ranks" in text_of(found)


def test_what_lies_between_steps_and_is_not_known_is_not_covered() -> None:
    lines = [
        metering(1, a=0.0),
        steps_of(11, 1, [100.0] * 10),
        steps_of(621, 11, [100.0] * 10, before={"evaluation": None, "other": None}),
        Rest(at=T + 921, joules={"evaluation": None}),
        Ended(at=T + 922),
    ]
    assert account(lines).uncovered_seconds == pytest.approx(600 + 300)


def test_steps_that_a_killed_command_did_not_write_are_told() -> None:
    lines = [
        Began(at=T),
        metering(1, a=0.0),
        steps_of(41, 1, [100.0] * 40),
        Began(at=T + 200),
        metering(230, a=0.0),
        steps_of(243, 61, [100.0] * 12),
        Ended(at=T + 245),
    ]
    found = account(lines)
    assert (found.steps, found.unwritten_steps) == (52, 20)
    assert "not written 20 steps" in text_of(found)


@dataclass
class Job:
    """A simulated run on two devices that take 30 and 70 W all the time."""

    now: float = 0.0
    lines: list[Line] = field(default_factory=list)
    lost: float = 0.0
    """Seconds."""
    kept: list[float] = field(default_factory=list)
    """Seconds of each step that stands."""

    late: bool = False
    """Whether windows are entered as the ledger does: merged, at the end of their attempt."""
    window: Window | None = None

    watts = 30.0, 70.0

    def counters(self) -> dict[str, float | None]:
        return {name: 5 + watt * self.now for name, watt in zip((A, B), self.watts, strict=True)}

    def attempt(self, start: float, seconds: list[float], every: int, again: bool) -> None:
        self.lines.append(
            Metering(at=T + self.now, source="x", refresh=0.02, devices=self.counters())
        )
        self.now += start
        self.lost += start * again
        window = self.now - start
        for number, spent in enumerate(seconds):
            self.now += spent
            before: Joules = {"start": 100 * start} if number == 0 else {}
            first = len(self.kept) + 1
            self.lines.append(
                Steps(at=T + self.now, first=first, seconds=[spent], tokens=[1],
                      joules=[100 * spent], data_wait=[None], before=before)
            )  # fmt: skip
            self.kept.append(spent)
            if number % every == every - 1:
                self.report(self.now - window)
                window = self.now

    def report(self, seconds: float) -> None:
        devices = {
            name: Device(rank=0, seconds=seconds, joules={"step": watt * seconds}, mean_watts=watt,
                         peak_watts=None, counter=self.counters()[name])
            for name, watt in zip((A, B), self.watts, strict=True)
        }  # fmt: skip
        window = Window(at=T + self.now, refresh=0.02, devices=devices)
        if self.late:
            self.window = merged(self.window, window) if self.window else window
        else:
            self.lines.append(window)

    def die(self, unseen: float, gap: float, rolled_back: int) -> None:
        self.now += unseen + gap
        if self.window:
            self.lines.append(self.window)
            self.window = None
        self.lines.append(Lost(at=T + self.now, planned=False))
        back = min(rolled_back, len(self.kept))
        self.lost += unseen + gap + sum(self.kept[len(self.kept) - back :])
        del self.kept[len(self.kept) - back :]


SECONDS = st.floats(0.01, 20)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(SECONDS, st.lists(SECONDS, min_size=1, max_size=12), st.integers(1, 5),
                  SECONDS, SECONDS, st.integers(0, 15)),
        min_size=1, max_size=6,
    ),
    st.booleans(),
)  # fmt: skip
def test_no_joule_is_counted_twice_or_missed_whatever_dies_when(
    attempts: list[tuple[float, list[float], int, float, float, int]], late: bool
) -> None:
    job = Job(late=late)
    for number, (start, seconds, every, unseen, gap, back) in enumerate(attempts):
        job.attempt(start, seconds, every, again=number > 0)
        if number < len(attempts) - 1:
            job.die(unseen, gap, min(back, len(attempts[number + 1][1])))
    found = account(job.lines)
    assert found.joules == pytest.approx(100 * job.now)
    growing = so_far(job.lines)
    assert growing[-1][2] == pytest.approx(found.joules)
    assert all(a < b and x <= y for (a, _, x), (b, _, y) in pairwise(growing))
    assert found.joules_by_phase["productive"] == pytest.approx(100 * sum(job.kept))
    assert found.joules_by_phase["lost"] == pytest.approx(100 * job.lost, abs=1e-6)
    assert found.joules_by_phase["start"] == pytest.approx(100 * attempts[0][0])
    assert found.uncovered_seconds == 0
