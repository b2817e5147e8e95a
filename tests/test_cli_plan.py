"""`panthalassa plan` from its command line: a real run's own speed, claims, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil
import pytest
import yaml
from conftest import PLATFORM
from typer.testing import CliRunner, Result

from panthalassa.cli import app
from panthalassa.storage import open_storage
from panthalassa.tracking.spool import series

FLAGSHIP = str(PLATFORM.parent / "jobs" / "configs" / "panthalassa-12b.yaml")
LAPTOP = str(PLATFORM.parent / "jobs" / "configs" / "laptop.yaml")


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def claims(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--claim", text)]


def test_a_finished_run_on_this_machine_predicts_its_own_steps_and_another_batch(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(finished))
    run = finished / "runs" / "small"
    steps = series(open_storage(str(run)))
    pairs = zip(steps["step_seconds"], steps["data_seconds"], strict=True)
    measured = median(seconds[2] - waited[2] for seconds, waited in list(pairs)[1:])
    config = str(run / "config.yaml")
    arguments = ["--gpus", "2", "--from-run", str(run), "--json"]

    def step_seconds(*overrides: str) -> float:
        result = plan(config, "parallel.tp_size=1", *overrides, *arguments)
        assert result.exit_code == 0, result.output
        data = json.loads(result.stdout)
        assert data["speed_fitted_to"].startswith(f"{len(steps['loss']) - 1} steps of ")
        asked = yaml.safe_load(Path(config).read_text())["train"]["micro_batch"]
        [found] = [
            one["speed"]["step_seconds"]
            for one in data["ranking"]
            for layout in [one["layout"]]
            if (layout["tp"], layout["replicas"], layout["micro_batch"]) == (1, 1, asked)
            and layout["activation_checkpointing"] == "none"
            and not layout["keep_gathered"]
        ]
        return float(found)

    own = step_seconds()
    assert own == pytest.approx(measured, rel=0.15)
    assert 0.48 * own < step_seconds("train.global_batch=8") < own


def test_the_two_false_claims_of_the_flagship_are_named() -> None:
    flagship = claims(
        "gpus=512",
        "days=14",
        "gpu_hours=1.2e6",
        "tokens_per_second_per_gpu=1.8",
        "params=12.3e9",
        "text_bytes=3.2e12",
    )
    told = plan("check", *flagship)
    assert told.exit_code == 1
    assert "24 x 512 x 14 = 172,032 GPU-hours" in told.stdout
    assert "with 1,800 tokens/s/GPU all agree" in told.stdout
    data = json.loads(plan("check", *flagship, "--json").stdout)
    assert not data["consistent"]
    assert data["remedies"][0].startswith("gpu_hours: 172,032 GPU-hours instead of 1,200,000")
    agreed = plan("check", *claims("gpus=512", "days=14", "gpu_hours=172032"))
    assert agreed.exit_code == 0
    assert "the claims agree" in agreed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FLAGSHIP, "--gpu", "b100"], "unknown GPU 'b100'"),
        ([FLAGSHIP, "--gpu", "cpu"], "tell their --from-run RUN"),
        ([FLAGSHIP, "--gpu", "h100"], "did you mean h100-80gb"),
        ([FLAGSHIP, "--gpu", ""], "unknown GPU ''"),
        ([FLAGSHIP, "--gpus", "500"], "500 GPUs do not fill nodes of 8: take 496 or 504"),
        ([FLAGSHIP, "--gpus", "0"], "a cluster has at least one"),
        ([FLAGSHIP, "--gpus", "-8"], "a cluster has at least one"),
        ([FLAGSHIP, "--gpus", "32768"], "take fewer GPUs, a larger batch"),
        ([FLAGSHIP, "--tokens", "-5"], "tokens is finite and above 0"),
        ([FLAGSHIP, "--tokens", "nan"], "--tokens nan: "),
        ([FLAGSHIP, "--assume", "reserved_gb=100"], "leave nothing of the 80"),
        ([FLAGSHIP, "--tokens", "5t"], "those that may be written: k, M, B, G, T"),
        ([FLAGSHIP, "--assume", "pue=0"], "a building draws at least"),
        ([FLAGSHIP, "--from-run", "nowhere"], "no run at"),
        ([FLAGSHIP, "--claim", "gpus=5"], "claims are checked by `panthalassa plan check`"),
        ([FLAGSHIP, "train.step=5"], "did you mean train.steps?"),
        (["nothing.yaml"], "can not be read"),
        ([LAPTOP], "add parallel.precision=bf16"),
        (["check"], "no claims"),
        (["check", *claims("time=14")], "has no unit: write time=14d"),
        (["check", *claims("mfu=1.2")], "at most 100 %"),
        (["check", *claims("days=-1")], "is impossible"),
        (["check", "--gpus", "5"], "plan check takes claims alone"),
    ],
)
def test_what_can_not_be_planned_is_refused_in_one_message(
    arguments: list[str], message: str
) -> None:
    result = plan(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_stopped_while_it_traces_leaves_no_process(
    stop: signal.Signals, tmp_path: Path
) -> None:
    """Ctrl-C goes to all of them, and what was traced is kept; a kill goes to the command alone."""
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "panthalassa.cli", "plan", FLAGSHIP]
    running = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stderr is not None
    assert "tracing" in running.stderr.readline()
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("panthalassa-trace-*/*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracing = psutil.Process(running.pid).children(recursive=True)
    if stop == signal.SIGINT:
        os.killpg(running.pid, stop)
    else:
        running.send_signal(stop)
    _, left = psutil.wait_procs(tracing, timeout=60)
    assert left == []
    _, told = running.communicate(timeout=60)
    assert running.returncode == (130 if stop == signal.SIGINT else -stop), told
    assert "Traceback" not in told
    assert list(tmp_path.glob("panthalassa-trace-*")) == []
    assert list(tmp_path.rglob(".cache/**/*")) or stop == signal.SIGTERM
