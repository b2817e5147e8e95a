"""A run is asked to stop, by Ctrl-C or through its folder, and the same command goes on."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
import yaml

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import committed
from panthalassa.train.stop import PATIENCE as STANDS
from panthalassa.train.stop import REQUEST, StopRequests, request_stop

PATIENCE = 240
"""Seconds after which a hanging command is given up."""


@pytest.fixture
def command(
    configure: Callable[..., Config], tmp_path: Path
) -> Iterator[Callable[[], pexpect.spawn]]:
    """Starts `panthalassa train` in a terminal of its own, with a Ray of its own."""
    config = configure(
        tmp_path,
        "cluster.workers=1",
        "train.steps=400",
        "checkpoint.every=1000",
        "evaluation.every=1000",
    )
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    started: list[pexpect.spawn] = []
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        environment = {**os.environ, "RAY_TMPDIR": temporary, "HOME": str(tmp_path)}
        environment.pop("RAY_ADDRESS", None)

        def start() -> pexpect.spawn:
            arguments = ["-m", "panthalassa.cli", "train", str(path)]
            child = pexpect.spawn(
                sys.executable,
                arguments,
                env=environment,
                encoding="utf-8",
                timeout=PATIENCE,
                dimensions=(40, 160),
            )
            started.append(child)
            return child

        yield start
        for child in started:
            child.close(force=True)


def test_ctrl_c_and_stop_end_a_run_with_a_checkpoint_and_the_same_command_goes_on(
    command: Callable[[], pexpect.spawn], tmp_path: Path
) -> None:
    run = open_storage(str(tmp_path / "runs")).below("small")
    first = command()
    first.expect(r"step [1-9]\d*/400")
    first.sendintr()
    first.expect("stopping after this step, with a checkpoint")
    first.expect(r"stopped as asked; the same command goes on, after step (\d+)")
    stopped_at = int(first.match.group(1))
    first.expect(pexpect.EOF)
    first.close()
    assert first.exitstatus == 0
    assert 0 < stopped_at < 400
    assert committed(run) == [f"step-{stopped_at:08d}"]

    second = command()
    second.expect(f"going on after step {stopped_at}")
    second.expect(r"first step after")
    stop = [sys.executable, "-m", "panthalassa.cli", "stop", str(tmp_path / "runs" / "small")]
    done = subprocess.run(stop, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    second.expect(r"stopped as asked; the same command goes on, after step (\d+)")
    assert int(second.match.group(1)) > stopped_at
    second.expect(pexpect.EOF)
    second.close()
    assert second.exitstatus == 0
    assert not re.search("Traceback", second.before or "")
    refused = subprocess.run(stop, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "nothing trains" in refused.stderr


def test_a_request_is_heard_by_a_command_that_starts_behind_it(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write("config.yaml", b"")
    asking = threading.Thread(target=request_stop, args=(run,))
    asking.start()
    while not run.exists(REQUEST):
        time.sleep(0.01)
    listening = StopRequests(run)
    assert listening()
    asking.join(10)
    assert not asking.is_alive()
    assert not listening()


def test_a_request_that_nobody_waits_for_any_more_stops_no_later_run(tmp_path: Path) -> None:
    """It is not answered either: a clock that is behind makes a request look as old, and whoever made
    it must not be told that the run stops."""
    run = open_storage(str(tmp_path))
    run.write(REQUEST, str(time.time() - STANDS).encode())
    assert not StopRequests(run)()
    assert run.exists(REQUEST)


def test_a_request_that_nobody_hears_is_taken_back(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write("config.yaml", b"")
    with pytest.raises(PanthalassaError, match="nothing trains"):
        request_stop(run, patience=0.2)
    assert not run.exists(REQUEST)
