"""One run, four commands: who comes while another trains is refused, and a lost one has a successor."""

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from nodes import Command
from processes import MARK, left_over, marked, title

from panthalassa.config import Config
from panthalassa.storage import open_storage
from panthalassa.tracking.spool import series
from panthalassa.train.audit import audit_run
from panthalassa.train.checkpoint import committed, read_commit
from panthalassa.train.run import Outcome

Configure = Callable[..., Config]


class Impatient(Command):
    """Takes a silent command for dead sooner."""

    program = (
        "-c",
        "from panthalassa import cli, lease\n"
        "lease.BEAT, lease.PATIENCE, lease.TOLD = 1.0, 6.0, 2.0\n"
        "cli.app()",
    )


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks the processes of the test, of which none is left behind it."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    for process in marked(mark):
        process.kill()


def ranks(command: Command) -> list[psutil.Process]:
    found = psutil.Process(command.process.pid).children(recursive=True)
    return [process for process in found if title(process).startswith("ray::RayTrainWorker")]


def wait_for_lines(ledger: Path, lines: int) -> None:
    until = time.monotonic() + 120
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < until, f"{ledger} has no {lines} lines"
        time.sleep(0.002)


def test_a_second_command_is_refused_and_a_lost_one_shut_out(
    configure: Configure, undisturbed: Outcome, tmp_path: Path, mark: str
) -> None:
    """The first command is paused with its ranks, and wakes up when the second trains; the second is
    killed; the third ends the run. The curve is the undisturbed one."""
    config = configure(tmp_path)
    folder = tmp_path / "runs" / "small"
    first = Impatient(config, tmp_path, "first")
    first.wait_for(lambda text: (folder / "lease/000001.json").exists(), "its lease")

    refused = Impatient(config, tmp_path, "refused")
    (message,) = refused.wait().splitlines()
    assert refused.process.returncode == 1
    assert message.startswith("panthalassa: another command has this folder: ")
    assert f"is held by process {first.process.pid} on " in message
    assert f"`panthalassa stop {folder}`" in message

    wait_for_lines(folder / "ledger/000001.jsonl", 7)  # its first checkpoint is that of step 4
    paused = [psutil.Process(first.process.pid), *ranks(first)]
    assert len(paused) == 3
    for process in paused:
        process.suspend()
    second = Impatient(config, tmp_path, "second")
    second.wait_for(lambda text: "there is no sign of life" in text, "a notice that it waits")
    second.wait_for(
        lambda text: f"taking over from process {first.process.pid}" in text, "a takeover"
    )
    wait_for_lines(folder / "ledger/000002.jsonl", 2)
    for process in paused:
        process.resume()
    wait_for_lines(folder / "ledger/000002.jsonl", 9)
    second.signal(signal.SIGKILL)

    third = Impatient(config, tmp_path, "third")
    text = third.wait()
    assert "complete, after step 24" in text
    assert f"taking over from process {second.process.pid}" in text
    assert "no sign of life" not in text, "it had not to wait"
    assert "another command goes on with this run" in first.wait()
    assert first.process.returncode == 1

    run = open_storage(str(folder))
    report = audit_run(run)
    assert report.problems == []
    assert [account.attempt.attempt for account in report.attempts] == [1, 2, 3]
    spooled = {step: loss for step, _, loss in series(run)["loss"]}
    expected = {step.step: step.loss for step in undisturbed.history.steps}
    assert spooled == pytest.approx(expected, abs=1e-5)
    for name in committed(run):
        files = read_commit(run, name).files
        assert {file: run.sha256(f"{name}/{file}") for file in files} == files
    assert left_over(mark) == []
