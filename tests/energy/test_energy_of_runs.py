"""Whole runs on real Ray Train workers over scripted GPUs: every joule is where the script put it."""

import csv
import hashlib
import itertools
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from nodes import Command

from panthalassa.config import Config
from panthalassa.energy.account import account, standing
from panthalassa.energy.ledger import DETAIL, FOLDER, read
from panthalassa.energy.lines import Line, Metering, Rest, Steps
from panthalassa.energy.meters import SENSOR
from panthalassa.energy.nvml import SLOWEST
from panthalassa.storage import open_storage
from panthalassa.tracking import spool

if TYPE_CHECKING:
    from nvml import Gpu, NvmlDouble

A, B = "GPU-0a", "GPU-0b"
REFRESH = 0.02


@pytest.fixture
def gpus(nvml: "NvmlDouble", nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> "NvmlDouble":
    """Two GPUs whose power swings, for all processes that start from here on, in real time."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent))
    nvml.seconds, nvml.since = None, time.monotonic()
    for uuid, least, most in ((A, 100, 300), (B, 50, 80)):
        swing = [(3.7 * n, most if n % 2 else least) for n in range(200)]
        nvml.add(uuid, swing).refresh = REFRESH
    nvml.publish()
    return nvml


def joules_of(gpu: "Gpu", begin: float, end: float) -> float:
    """The integral of a curve, for times behind its first point and before its last."""
    times = sorted({begin, end, *(t for t, _ in gpu.curve if begin < t < end)})
    pairs = itertools.pairwise(times)
    return sum((_power(gpu, a) + _power(gpu, b)) / 2 * (b - a) for a, b in pairs)


def _power(gpu: "Gpu", at: float) -> float:
    for (a, low), (b, high) in zip(gpu.curve, gpu.curve[1:], strict=False):
        if a <= at <= b:
            return low + (high - low) * (at - a) / (b - a)
    raise AssertionError("outside of the curve")


def scripted(double: "NvmlDouble", begin: float, end: float) -> float:
    """Joules of all GPUs between two moments of time.time()."""
    assert double.since is not None
    zero = time.time() - time.monotonic() + double.since
    return sum(joules_of(gpu, begin - zero, end - zero) for gpu in double.gpus.values())


def train(config: Config, folder: Path) -> tuple[str, list[Line]]:
    """Runs the command; its output, and the lines of the ledger."""
    command = Command(config, folder)
    try:
        text = command.wait()
    finally:
        command.close()
    assert command.process.returncode == 0, text
    return text, read(open_storage(config.run.directory).below(config.run.name))


def test_a_run_with_a_killed_worker_accounts_for_the_scripted_energy_and_for_what_that_cost(
    gpus: "NvmlDouble", configure: Callable[..., Config], tmp_path: Path
) -> None:
    settings = "energy.source=nvml", "energy.pue=1.2", "checkpoint.every=24", "train.steps=60"
    config = configure(tmp_path, *settings)
    folder = Path(config.run.directory, config.run.name)
    command = Command(config, tmp_path)
    try:
        command.wait_for(lambda _: _steps_done(folder) >= 36, "step")
        workers(command)[-1].send_signal(signal.SIGKILL)
        text = command.wait()
    finally:
        command.close()
    assert command.process.returncode == 0, text
    lines = read(open_storage(str(folder)))
    found = account(lines)
    first, second = (i for i, line in enumerate(lines) if isinstance(line, Metering))
    metering = lines[first]
    assert isinstance(metering, Metering)
    assert list(metering.devices) == [A, B], "each once, though both ranks see both"
    assert metering.refresh in (pytest.approx(REFRESH, rel=0.25), SLOWEST), "on a busy machine, too"
    before = [line for line in lines[first:second] if isinstance(line, Steps)]
    after = [line for line in lines[second:] if isinstance(line, Steps)]
    (rest,) = (line for line in lines if isinstance(line, Rest))
    again = after[0]
    assert found.steps == 60
    assert found.uncovered_seconds == 0
    assert again.first <= before[-1].last, "the kill came at a checkpoint"
    opened = lines[second].at
    assert found.joules == pytest.approx(scripted(gpus, metering.at, rest.at), rel=0.02)
    stood_until = max(_end_of(line, again.first - 1) for line in before if line.first < again.first)
    at_least = scripted(gpus, before[-1].at, opened)
    at_most = scripted(gpus, stood_until, again.at - again.seconds[0])
    assert 0.98 * at_least < found.joules_by_phase["lost"] < 1.02 * at_most
    standing_steps = [line for line in before if line.first < again.first] + after
    spans = [(line.at - sum(line.seconds), line.at) for line in standing_steps]
    assert found.bound is not None
    assert found.j_per_iteration == pytest.approx(
        sum(scripted(gpus, *span) for span in spans) / 60, rel=found.bound - SENSOR + 0.02
    )
    assert {"start", "evaluation", "checkpoint"} <= {
        phase for phase, joules in found.joules_by_phase.items() if joules > 0
    }
    assert "J/iteration" in text
    assert "energy.pue 1.2" in text
    _detail_is_an_artifact(folder)


def _detail_is_an_artifact(run: Path) -> None:
    detail = run / FOLDER / DETAIL
    rows = list(csv.DictReader(detail.read_text().splitlines()))
    assert {(row["node"], row["device"]) for row in rows} == {
        (socket.gethostname(), A),
        (socket.gethostname(), B),
    }
    artifacts = [
        record.values
        for record in spool.read(open_storage(str(run)))
        if record.kind == "artifact" and record.values["name"] == "energy.devices"
    ]
    sha256 = hashlib.sha256(detail.read_bytes()).hexdigest()
    assert artifacts == [{"name": "energy.devices", "uri": str(detail), "sha256": sha256}]


def _steps_done(folder: Path) -> int:
    ledger = folder / "ledger" / "000001.jsonl"
    return ledger.read_bytes().count(b"\n") - 1 if ledger.exists() else 0


def _end_of(line: Steps, step: int) -> float:
    """When a step of the line, or its last one before that, was done."""
    return line.at - sum(line.seconds[max(0, step - line.first + 1) :])


def workers(command: Command) -> list[psutil.Process]:
    """The ranks, lowest process first."""
    every = psutil.Process(command.process.pid).children(recursive=True)
    return sorted(
        (p for p in every if "RayTrainWorker" in " ".join(p.cmdline())), key=lambda p: p.pid
    )


def test_a_comparison_of_two_runs_that_differ_by_22_percent_says_so(
    nvml: "NvmlDouble",
    nvml_library: Path,
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script's time is the ledger of samples: each step takes a second, whatever it takes here."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library.parent))
    settings = (
        "train.steps=200", "train.global_batch=24", "train.optimizer.learning_rate=1e-4",
        "evaluation.every=1000",
    )  # fmt: skip
    runs = []
    for name, scale in (("before", 1.0), ("after", 0.78)):
        config = configure(
            tmp_path, f"run.name={name}", "energy.source=nvml", "checkpoint.every=1000", *settings
        )
        folder = Path(config.run.directory, name)
        nvml.lines = folder / "ledger" / "000001.jsonl"
        wave = [250 + 60 * math.sin(n) for n in range(400)]
        nvml.add(A, [point for n, watt in enumerate(wave) for point in (
            (n + 0.01, watt * scale), (n + 1.0, watt * scale))])  # fmt: skip
        train(config, tmp_path)
        runs.append(str(folder))
    command = [sys.executable, "-m", "panthalassa.cli", "energy", "compare", *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = re.search(
        r"([-+][\d.]+) % J/iteration, 95% interval ([-+][\d.]+) to ([-+][\d.]+) %", done.stdout
    )
    assert told, done.stdout
    percent, low, high = map(float, told.groups())
    assert low <= -22 <= high
    assert percent == pytest.approx(-22, abs=2)
    assert high < 0, "it is a difference"
    steps = standing(read(open_storage(runs[1])))
    assert [step.step for step in steps] == list(range(1, 201))
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "panthalassa.cli", "report", runs[0], "--out", str(page)]
    done = subprocess.run(
        [*command, "--compare", runs[1]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for run in runs:
        per_iteration = account(read(open_storage(run))).j_per_iteration
        assert per_iteration is not None
        assert f"{per_iteration:.3g} J" in text, "its headline"
