"""The energy ledger in a run's folder: what was noted comes back; changed and lost lines are told."""

from pathlib import Path

import pytest
from metered import A, T, metering, steps_of, text_of

from panthalassa.config import Energy
from panthalassa.energy.account import account
from panthalassa.energy.ledger import DETAIL, FOLDER, EnergyLedger, read
from panthalassa.energy.lines import Device, Steps, Window
from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage


def test_whoever_reads_when_a_run_was_evaluated_finds_every_step(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    with EnergyLedger(run, Energy(), T, 1) as ledger:
        ledger.note(metering(1, a=0.0))
        ledger.note(steps_of(11, 1, [10.0] * 3))
        ledger.catch_up()
        assert account(read(run)).j_per_token == 1.0


def test_the_ledger_gives_back_what_was_noted_over_all_commands(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for number, began, first in ((1, T, 1), (2, T + 100, 21)):
        with EnergyLedger(run, Energy(pue=1.1), began, number) as ledger:
            ledger.note(metering(1, a=0.0))
            for step in range(first, first + 20):
                ledger.note(steps_of(step, step, [10.0]))
            half = Device(rank=0, seconds=10, joules={"step": 100}, mean_watts=10, peak_watts=None,
                          counter=100.0)  # fmt: skip
            ledger.note(Window(at=T + 98, refresh=0.02, devices={A: half}))
            ledger.note(steps_of(99, first + 20, [7.0], before={"checkpoint": 3.0}))
            rest = half.model_copy(update={"counter": 200.0})
            ledger.note(Window(at=T + 99, refresh=0.02, devices={A: rest}))
            assert ledger.account().pue == 1.1
            assert ledger.write_detail()
    found = account(read(run))
    assert found.joules == pytest.approx(2 * (20 * 10 + 7 + 3)), "a step twice"
    steps = [line for line in read(run) if isinstance(line, Steps)]
    assert max(len(line.seconds) for line in steps) == 5, "lines of some seconds"
    windows = [line for line in read(run) if isinstance(line, Window)]
    assert [window.devices[A].seconds for window in windows] == [20, 20], "two, merged, a command"
    assert windows[0].devices[A].counter == 200
    assert ",GPU-0a,0,40.0,400.0" in (tmp_path / FOLDER / DETAIL).read_text()


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    with pytest.raises(PanthalassaError, match="no run with an account of its energy"):
        read(run)
    with EnergyLedger(run, Energy(), T, 1):
        pass
    (journal,) = (tmp_path / FOLDER).glob("*.jsonl")
    journal.write_text(journal.read_text() + '{"kind": "began"}\n')
    with pytest.raises(
        PanthalassaError, match=r"line 3 of .* energy is not what was written there"
    ):
        read(run)


def two_commands(folder: Path) -> Path:
    """The journal of the first."""
    for number in (1, 2):
        with EnergyLedger(open_storage(str(folder)), Energy(), T, number) as ledger:
            ledger.note(metering(1, a=0.0))
            ledger.note(steps_of(11, 1 + 10 * number, [100.0] * 10))
    return folder / FOLDER / "000001.jsonl"


def test_a_ledger_in_which_a_figure_was_changed_is_not_believed(tmp_path: Path) -> None:
    journal = two_commands(tmp_path)
    journal.write_text(journal.read_text().replace("100.0", "900.0", 1))
    with pytest.raises(
        PanthalassaError, match=r"line 3 of .* energy is not what was written there"
    ):
        read(open_storage(str(tmp_path)))


def test_a_command_whose_journal_is_gone_is_missed(tmp_path: Path) -> None:
    two_commands(tmp_path).unlink()
    found = account(read(open_storage(str(tmp_path))))
    assert (found.joules, found.missing) == (1000, 1)
    assert "all attempts" not in text_of(found)
    assert "missing 1 earlier command, whose journal in" in text_of(found)


def test_a_summary_tells_that_earlier_commands_can_not_be_read(tmp_path: Path) -> None:
    journal = two_commands(tmp_path)
    journal.write_text(journal.read_text().replace("100.0", "900.0", 1))
    with EnergyLedger(open_storage(str(tmp_path)), Energy(), T, 3) as ledger:
        ledger.note(metering(1, a=0.0))
        ledger.note(steps_of(11, 31, [50.0] * 10))
    found = ledger.account()
    assert (found.joules, found.missing) == (500, 1)
