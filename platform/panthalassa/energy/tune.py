"""Which power limit pays: tokens a second and joules a token of a running run, at several limits.

In comes a run that trains now, on GPUs of this machine; its limits are set one after the other, and what
its steps took under each is read from its energy ledger. Out comes a point for each limit, and which of
them are on the Pareto front. A `guardian` process puts the limits back, also when this one is killed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml

from panthalassa.energy.guardian import restore
from panthalassa.energy.ledger import read
from panthalassa.energy.lines import Line, Metering, Steps
from panthalassa.energy.meters import MeterLost
from panthalassa.energy.nvml import ask, shut
from panthalassa.errors import PanthalassaError
from panthalassa.line_ledger import Ended
from panthalassa.storage import Storage

POINTS = 5
"""Limits that are tried when none are given."""
SETTLE = 10.0
"""Seconds after a new limit that do not count: clocks and temperature follow it."""
PATIENCE = 120.0
"""Seconds without a line from the run after which it counts as ended."""


@dataclass(frozen=True)
class Point:
    """What a run did under a limit."""

    watts: float
    """The limit of each GPU."""
    steps: int
    tokens_per_second: float
    j_per_token: float


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both speed and energy (Pareto), the fastest first."""
    ordered = sorted(points, key=lambda point: (-point.tokens_per_second, point.j_per_token))
    best: list[Point] = []
    for point in ordered:
        if not best or point.j_per_token < best[-1].j_per_token:
            best.append(point)
    return best


def tune(
    run: Storage,
    watts: Sequence[float],
    seconds: float,
    tell: Callable[[str], None],
    settle: float = SETTLE,
) -> list[Point]:
    """Try the limits (W) for `seconds` each, or POINTS of them between the least and the present one.

    Raises PanthalassaError when the run has no GPUs here, or its limits may not be set.
    """
    if wrong := [watt for watt in watts if watt <= 0]:
        raise PanthalassaError(f"--limits {wrong[0]:g}: expected watts above zero")
    uuids = _gpus(run)
    with _guarded(uuids) as (now, least, most):
        chosen = list(watts) or [
            (least + (now - least) * n / (POINTS - 1)) / 1e3 for n in reversed(range(POINTS))
        ]
        if wrong := [watt for watt in chosen if not least <= watt * 1e3 <= most]:
            raise PanthalassaError(
                f"--limits {wrong[0]:g}: these GPUs take {least / 1e3:g} to {most / 1e3:g} W"
            )
        points = []
        for watt in chosen:
            for uuid in uuids:
                _set(uuid, round(watt * 1e3))
            begin = time.time() + settle
            point = _measured(run, watt, begin, begin + seconds)
            if point is None:
                tell(f"{watt:g} W: the run did no step, or does not measure its energy")
                break
            tell(
                f"{watt:g} W: {point.tokens_per_second:,.0f} tokens/s, {point.j_per_token:.4g} J/token"
            )
            points.append(point)
    return points


def _gpus(run: Storage) -> list[str]:
    metering = [line for line in read(run) if isinstance(line, Metering | Ended)][-1:]
    if not metering or not isinstance(metering[0], Metering):
        raise PanthalassaError(f"{run.uri} is not training, or its energy is not measured")
    others = [name for name in metering[0].devices if not name.startswith("GPU-")]
    if others:
        raise PanthalassaError(f"{run.uri} is measured at {others[0]}, which has no power limit")
    return list(metering[0].devices)


@contextmanager
def _guarded(uuids: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Within, limits may be changed; the lowest present one, and the least and most allowed, in mW."""
    try:
        ask("NVML", pynvml.nvmlInit)
        handles = {uuid: ask(uuid, pynvml.nvmlDeviceGetHandleByUUID, uuid) for uuid in uuids}
        function = pynvml.nvmlDeviceGetPowerManagementLimit
        before = {uuid: int(ask(uuid, function, handle)) for uuid, handle in handles.items()}
        bounds = [
            ask(uuid, pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
            for uuid, handle in handles.items()
        ]
        for uuid, limit in before.items():
            _set(uuid, limit)  # nothing changes, except that it is known to be allowed
    except MeterLost as error:
        raise PanthalassaError(
            f"power limits can not be set: {error}. It takes NVIDIA's driver, root, and a machine that "
            "has all GPUs of the run"
        ) from error
    guardian = _start_guardian(before)
    try:
        yield min(before.values()), max(b[0] for b in bounds), min(b[1] for b in bounds)
    finally:
        assert guardian.stdin
        guardian.stdin.close()
        problems = restore(before) if guardian.wait() else []
        shut()
    if problems:
        raise PanthalassaError(f"power limits are not restored: {'; '.join(problems)}")


def _start_guardian(limits: Mapping[str, int]) -> subprocess.Popen[str]:
    guardian = subprocess.Popen(
        [sys.executable, "-m", "panthalassa.energy.guardian"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert guardian.stdin
    assert guardian.stdout
    guardian.stdin.write(json.dumps(limits) + "\n")
    guardian.stdin.flush()
    if guardian.stdout.readline() != "ready\n":
        raise PanthalassaError("the process that restores power limits did not start")
    return guardian


def _set(uuid: str, milliwatts: int) -> None:
    handle = ask(uuid, pynvml.nvmlDeviceGetHandleByUUID, uuid)
    ask(uuid, pynvml.nvmlDeviceSetPowerManagementLimit, handle, milliwatts)


def _measured(run: Storage, watts: float, begin: float, end: float) -> Point | None:
    """Wait for what the ledger tells of this time; None when the run is over."""
    time.sleep(max(0.0, end - time.time()))
    until = time.monotonic() + PATIENCE
    while True:
        lines = read(run)
        over = any(isinstance(line, Ended) and line.at > begin for line in lines)
        told = any(isinstance(line, Steps) and line.at >= end for line in lines)
        if told or over or time.monotonic() > until:
            return within(lines, watts, begin, end)
        time.sleep(0.5)


def within(lines: Iterable[Line], watts: float, begin: float, end: float) -> Point | None:
    """What the steps took that lie in this time (seconds since 1970) whole; None without any."""
    steps = tokens = 0
    joules = seconds = 0.0
    for line in (line for line in lines if isinstance(line, Steps)):
        done = line.at - sum(line.seconds)
        for spent, count, energy in zip(line.seconds, line.tokens, line.joules, strict=True):
            began, done = done, done + spent
            if begin <= began and done <= end and energy is not None:
                steps, tokens = steps + 1, tokens + count
                joules, seconds = joules + energy, seconds + spent
    if not steps:
        return None
    return Point(watts, steps, tokens / seconds, joules / tokens)


def explain(points: Sequence[Point]) -> Iterator[tuple[str, str]]:
    """A table for people; the points on the front are marked."""
    best = front(points)
    for point in points:
        yield (
            f"{point.watts:g} W",
            f"{point.tokens_per_second:12,.0f} tokens/s {point.j_per_token:10.4g} J/token over "
            f"{point.steps} steps{'  * on the front' if point in best else ''}",
        )
    yield "restored", "the power limits are as they were"
