"""The processes behind a run."""

import os
import time
from pathlib import Path

import psutil
import ray

MARK = "PANTHALASSA_TEST"
"""The variable that marks the processes of a test."""
OF_ACTORS = 45
"""Seconds. Ray lets an actor that nobody holds any more end by itself, and ends it after 30."""


def worker_pids() -> list[int]:
    """The processes of this session's Ray Train workers."""
    return pids("RayTrainWorker")


def pids(name: str) -> list[int]:
    """The processes of this session's Ray with `name` in their titles."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            raylet = Path("/proc", parent, "cmdline").read_bytes()
        except OSError:
            continue
        if name.encode() in title and session.encode() in raylet:
            found.append(int(process.name))
    return sorted(found)


def marked(mark: str) -> list[psutil.Process]:
    """All processes but this one that carry `mark`, which they have inherited."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def left_over(mark: str, title_start: str = "", patience: float = 10) -> list[str]:
    """What still runs of the processes with `mark` and such a title, after a moment to end."""
    until = time.monotonic() + patience
    while True:
        left = [title(process) for process in marked(mark)]
        left = [found for found in left if found.startswith(title_start)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.5)
