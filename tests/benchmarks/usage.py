"""A command and all of its descendants: their CPU seconds and their memory, read while it runs.

`/proc` is read every FIFTH of a second, so that up to so much of the CPU time of a process that has
ended is missed. Memory is the proportional set size (PSS): a page that several processes share, as
those of Ray's object store, counts once. The object store is shown apart, for it is a cache that Ray
fills up to its bound and spills from.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FIFTH = 0.2
MEMORY_EVERY = 5  # looks
RAYS_OWN = tuple(
    f"ray::{name}"
    for name in ("Dashboard", "RuntimeEnv", "_Stats", "_Autoscaling", "IDLE_Spill", "IDLE_Restore")
)


@dataclass
class Usage:
    """`cpu` seconds and `peak` bytes by kind of process: the command itself, Ray's workers, which run
    the platform's code, and Ray's own processes. `together` is the highest sum at one time, `store` that
    of the object store, `largest` the largest single process without its part of the store."""

    seconds: float = 0
    cpu: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    together: int = 0
    store: int = 0
    largest: int = 0
    lines: list[str] = field(default_factory=list)


def kind_of(process: psutil.Process, command: int) -> str:
    if process.pid == command:
        return "command"
    title = " ".join(process.cmdline())
    works = title.startswith("ray::") and not title.startswith(RAYS_OWN)
    return "workers" if works or "default_worker.py" in title else "Ray"


def watch(arguments: list[str], home: Path, memory: bool = False) -> Usage:
    """Run a command to its end in a process group, home and temporary folder of its own."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True)
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    environment |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    log, usage, begin = home / "output", Usage(), time.monotonic()
    with log.open("wb") as output:
        command = subprocess.Popen(
            arguments, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    known: dict[psutil.Process, tuple[str, float]] = {}
    looks = 0
    while command.poll() is None:
        _look(command.pid, known)
        if memory and looks % MEMORY_EVERY == 0:
            _weigh(known, usage)
        looks += 1
        time.sleep(FIFTH)
    usage.seconds = time.monotonic() - begin
    usage.lines = log.read_text().splitlines()
    if command.returncode:
        sys.exit("\n".join(usage.lines[-20:]))
    for kind, seconds in known.values():
        usage.cpu[kind] += seconds
    return usage


def _look(command: int, known: dict[psutil.Process, tuple[str, float]]) -> None:
    """Note the CPU seconds of all descendants as they are now."""
    try:
        family = [psutil.Process(command), *psutil.Process(command).children(recursive=True)]
    except psutil.Error:
        return
    for process in {*family, *known}:
        try:
            times = process.cpu_times()
            kind = kind_of(process, command)
        except psutil.Error:
            continue
        before = known.get(process, ("", 0.0))
        known[process] = (kind, max(before[1], times.user + times.system))


def _weigh(known: dict[psutil.Process, tuple[str, float]], usage: Usage) -> None:
    sizes: Counter[str] = Counter()
    store = 0
    for process, (kind, _) in known.items():
        try:
            whole = _pss(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        except OSError:
            continue
        private = whole["Pss"] - whole["Pss_Shmem"]
        sizes[kind] += private
        store += whole["Pss_Shmem"]
        usage.largest = max(usage.largest, private)
    for kind, size in sizes.items():
        usage.peak[kind] = max(usage.peak[kind], size)
    usage.store = max(usage.store, store)
    usage.together = max(usage.together, sizes.total() + store)


def _pss(rollup: str) -> dict[str, int]:
    lines = [line.split() for line in rollup.splitlines()[1:]]
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in lines}
