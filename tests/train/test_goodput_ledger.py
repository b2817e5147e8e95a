"""The goodput ledger: what the driver notes comes back, whatever storage and driver go through."""

import tempfile
from pathlib import Path

import pytest
from histories import DATA_SECONDS, STEP_SECONDS, Command, Simulated, T, scripts
from hypothesis import given, settings
from hypothesis import strategies as st
from s3 import BUCKET, FaultyProxy, Server, use_s3
from typer.testing import CliRunner

from panthalassa import journal
from panthalassa.cli import app
from panthalassa.errors import PanthalassaError
from panthalassa.line_ledger import Began, Ended, Lost
from panthalassa.storage import Storage, open_storage
from panthalassa.train import events
from panthalassa.train.goodput import Launched, Line, Spent, Steps, account
from panthalassa.train.goodput_ledger import GoodputLedger, read


def step_of(step: int, at: float, seconds: float = 2.0, data_seconds: float = 0.5) -> events.Step:
    return events.Step(
        step=step,
        at=at,
        loss=1.0,
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens=1,
        seconds=seconds,
        data_seconds=data_seconds,
        tokens_per_second=1.0,
        mfu=0.1,
        joules=None,
    )


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path))
    request.getfixturevalue("s3")
    monkeypatch.setattr(journal, "INTERVAL", 0.0)
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_what_is_noted_comes_back_in_order(run: Storage) -> None:
    with GoodputLedger(run, T, 1) as ledger:
        ledger.note(Launched(at=T + 1, workers=2))
        ledger.add(events.Started("compile", 3.0, at=T + 5))
        ledger.add(events.Started("model", 1.0, at=T + 6))
        for step in range(1, 9):
            ledger.add(step_of(step, T + 6 + 2 * step))
        ledger.add(events.Evaluated(8, 3.0, 100))
        ledger.add(events.Spent("evaluation", 1.0, at=T + 23))
        ledger.note(Lost(at=T + 24, planned=False))
    GoodputLedger(run, T + 100, 2)
    *lines, end, again = read(run)
    assert lines == [
        Began(at=T, number=1, before=0),
        Launched(at=T + 1, workers=2),
        Spent(at=T + 5, what="compile", seconds=3),
        Steps(at=T + 8, first=1, last=1, seconds=2, data_seconds=0.5),
        Steps(at=T + 14, first=2, last=4, seconds=6, data_seconds=1.5),
        Steps(at=T + 20, first=5, last=7, seconds=6, data_seconds=1.5),
        Steps(at=T + 22, first=8, last=8, seconds=2, data_seconds=0.5),
        Spent(at=T + 23, what="evaluation", seconds=1),
        Lost(at=T + 24, planned=False),
    ]
    assert isinstance(end, Ended)
    assert again == Began(at=T + 100, number=2, before=1)


def test_the_first_step_after_a_loss_is_not_merged_with_the_ones_that_follow(
    tmp_path: Path,
) -> None:
    """A first step is slow; in a mean its end would be wrong, and so would the time to recovery."""
    ledger = GoodputLedger(open_storage(str(tmp_path)), T, 1)
    ledger.add(step_of(1, T + 1, 1))
    ledger.note(Lost(at=T + 2, planned=False))
    ledger.add(step_of(2, T + 11, 4))
    ledger.add(step_of(3, T + 11.5, 0.5))
    assert ledger.goodput().mttr_seconds == pytest.approx(10)


def test_steps_that_are_repeated_are_not_merged_with_what_they_repeat(tmp_path: Path) -> None:
    ledger = GoodputLedger(open_storage(str(tmp_path)), T, 1)
    for number, step in enumerate([1, 2, 3, 2, 3, 4]):
        ledger.add(step_of(step, T + number / 10, 0.1, 0))
    assert ledger.goodput().lost_steps == 2
    merged = [(line.first, line.last) for line in read_steps(tmp_path)]
    assert merged == [(1, 1), (2, 3), (2, 4)]


def read_steps(folder: Path) -> list[Steps]:
    return [line for line in read(open_storage(str(folder))) if isinstance(line, Steps)]


@settings(deadline=None)  # writes files
@given(scripts)
def test_merged_lines_say_what_the_single_steps_said(script: list[Command]) -> None:
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        ledgers: list[GoodputLedger] = []

        def tell(line: Line) -> None:
            lines.append(line)
            match line:
                case Began():
                    run = open_storage(folder)
                    ledgers.append(GoodputLedger(run, line.at, len(ledgers) + 1))
                case Steps():
                    step = step_of(line.last, line.at, STEP_SECONDS, DATA_SECONDS)
                    ledgers[-1].add(step)
                case Spent():
                    ledgers[-1].add(events.Spent(line.what, line.seconds, line.at))
                case _:
                    ledgers[-1].note(line)

        Simulated(tell, merged=False).follow(script)
        for ledger in ledgers:
            goodput = ledger.goodput()  # writes the last steps, too
        written = account(read(open_storage(folder)))
    single = account(lines)
    assert goodput == written
    assert written.parts == pytest.approx(single.parts)
    assert written.lost_steps == single.lost_steps
    assert written.mttr_seconds == (single.mttr_seconds and pytest.approx(single.mttr_seconds))


@settings(deadline=None)
@given(st.data())
def test_a_line_that_was_cut_off_is_left_out(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = open_storage(folder)
        ledger = GoodputLedger(run, T, 1)
        ledger.add(step_of(1, T + 5))
        ledger.note(Lost(at=T + 24, planned=False))
        whole = read(run)
        (path,) = Path(folder, "goodput").iterdir()
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        GoodputLedger(run, T + 100, 2)
        count = content[:cut].count(b"\n")
        assert read(run) == [*whole[:count], Began(at=T + 100, number=2, before=1)]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    GoodputLedger(run, T, 1).note(Launched(at=T + 1, workers=2))
    (path,) = Path(tmp_path, "goodput").iterdir()
    path.write_text(path.read_text().replace("launched", "lunched"))
    with pytest.raises(PanthalassaError, match=f"{path}: line 2 of .* is not what"):
        read(run)
    later = GoodputLedger(run, T + 100, 2)
    assert later.goodput().commands == 1, "a run goes on, and accounts for what can be read"


def test_a_disk_that_takes_nothing_costs_no_line_once_it_does(tmp_path: Path) -> None:
    run, blocked = open_storage(str(tmp_path)), tmp_path / "goodput"
    blocked.write_text("not a folder")
    with GoodputLedger(run, T, 1) as ledger:
        ledger.add(step_of(1, T + 5))
        blocked.unlink()
        ledger.add(step_of(2, T + 7))
        assert ledger.goodput().parts["productive"] == 3
    assert [type(line) for line in read(run)] == [Began, Steps, Steps, Ended]


def test_object_storage_that_fails_costs_no_line_once_it_answers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "INTERVAL", 0.0)
    with FaultyProxy(server.url) as proxy:
        use_s3(monkeypatch, proxy.url)
        run = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
        proxy.next(["denied", "denied"])
        with GoodputLedger(run, T, 1) as ledger:
            ledger.add(step_of(1, T + 5))
            assert proxy.faults["denied"] == 2
            ledger.add(step_of(2, T + 7))
        assert [type(line) for line in read(run)] == [Began, Steps, Steps, Ended]


def test_lines_on_object_storage_wait_for_each_other(s3: str, tmp_path: Path) -> None:
    run = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    with GoodputLedger(run, T, 1) as ledger:
        for number in range(20):
            ledger.note(Launched(at=T + number, workers=2))
        assert not run.exists("goodput")
    assert len(run.below("goodput").files()) == 1
    assert len(read(run)) == 22


def test_a_long_run_leaves_few_objects_and_each_line_once(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "INTERVAL", 0.0)
    monkeypatch.setattr(journal, "FULL", 300)
    run = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    ledger = GoodputLedger(run, T, 1)
    lines = [Launched(at=T + number, workers=2) for number in range(20)]
    for line in lines:
        ledger.note(line)
    assert read(run) == [Began(at=T, number=1, before=0), *lines]
    sizes = [size for _, size in run.below("goodput").files()]
    assert 3 <= len(sizes) <= 6
    assert all(300 <= size < 400 for size in sizes[:-1])


def test_the_command_line_tells_of_a_run_that_goes_on(tmp_path: Path) -> None:
    ledger = GoodputLedger(open_storage(str(tmp_path)), T, 1)
    ledger.add(step_of(1, T + 8, seconds=6, data_seconds=0))
    told = CliRunner().invoke(app, ["goodput", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines() == [
        "goodput        75.0%: 6 s of 8 s trained the model",
        "  productive          6.0 s  75.0%",
        "  start               2.0 s  25.0%",
    ]


def test_the_command_line_says_when_there_is_no_run(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["goodput", str(tmp_path / "nothing")])
    assert told.exit_code == 1
    assert f"panthalassa: no run with an account of its time at {tmp_path}/nothing" in told.stderr
