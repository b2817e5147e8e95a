"""Whole runs on real Ray Train workers over scripted GPUs: every joule is where the script put it."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from nodes import Command

from panthalassa.config import Config
from panthalassa.energy.account import Account, account, standing
from panthalassa.energy.ledger import DETAIL, FOLDER, read
from panthalassa.energy.lines import Line, Metering, Rest, Steps, Window
from panthalassa.energy.meters import SENSOR
from panthalassa.storage import open_storage

if TYPE_CHECKING:
    from conftest import Gpu, NvmlDouble

A, B = "GPU-0a", "GPU-0b"
REFRESH = 0.02


@pytest.fixture
def gpus(
    nvml: "NvmlDouble", nvml_library: Path, monkeypatch: pytest.MonkeyPatch
) -> "NvmlDouble":
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
    pairs = zip(times, times[1:], strict=False)
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


def test_a_run_of_two_workers_accounts_for_the_scripted_energy(
    gpus: "NvmlDouble", configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(tmp_path, "energy.source=nvml", "energy.pue=1.2", "train.steps=60")
    text, lines = train(config, tmp_path)
    found = account(lines)
    (metering,) = (line for line in lines if isinstance(line, Metering))
    (rest,) = (line for line in lines if isinstance(line, Rest))
    assert list(metering.devices) == [A, B], "each once, though both ranks see both"
    assert metering.refresh == pytest.approx(REFRESH, rel=0.25)
    window = rest.at - metering.at
    exact = 2 * REFRESH / window + 0.005  # the double's sensors have no error
    assert found.joules == pytest.approx(scripted(gpus, metering.at, rest.at), rel=exact)
    steps = [line for line in lines if isinstance(line, Steps)]
    spans = [(line.at - sum(line.seconds), line.at) for line in steps]
    assert found.steps == 60
    assert found.bound is not None
    assert found.j_per_iteration == pytest.approx(
        sum(scripted(gpus, *span) for span in spans) / 60, rel=found.bound - SENSOR + 0.02
    )
    assert found.uncovered_seconds == 0
    assert {"start", "evaluation", "checkpoint"} <= {
        phase for phase, joules in found.joules_by_phase.items() if joules > 0
    }
    assert "J/iteration" in text
    assert "energy.pue 1.2" in text
    detail = Path(config.run.directory, config.run.name, FOLDER, DETAIL).read_text().splitlines()
    assert len(detail) == 3, "a heading and two devices"
