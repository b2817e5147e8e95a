"""The processes behind a run."""

from pathlib import Path

import ray


def worker_pids() -> list[int]:
    """The processes of this session's Ray Train workers."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            raylet = Path("/proc", parent, "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title and session.encode() in raylet:
            found.append(int(process.name))
    return sorted(found)
