"""PyTorch's flight recorder: the newest collectives of each rank on GPUs, for when one hangs.

NCCL's side of PyTorch remembers them, and writes them to a file when a byte arrives in a pipe
(ProcessGroupNCCL.hpp of PyTorch 2.13). `torchfrtrace` reads such files.
"""

import os
import time
from pathlib import Path

PIPE, DUMP = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_FR_DUMP_TEMP_FILE"
POLL = 0.2


def environment(run: str) -> dict[str, str]:
    """What the ranks of a run need in their environment for it."""
    return {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        PIPE: f"/tmp/panthalassa-{run}-pipe-",
        DUMP: f"/tmp/panthalassa-{run}-rank-",
    }


def newest_collectives(rank: int, patience: float) -> bytes | None:
    """What PyTorch remembers, once it has written that; None when nothing comes within `patience` s."""
    pipe = Path(f"{os.environ.get(PIPE)}{rank}.pipe")
    dump = Path(f"{os.environ.get(DUMP)}{rank}")
    if not pipe.is_fifo():
        return None
    dump.unlink(missing_ok=True)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"1")
    os.close(writer)
    until, before = time.monotonic() + patience, -1
    while time.monotonic() < until:
        size = dump.stat().st_size if dump.exists() else -1
        if size == before >= 0:  # it does not grow any more
            return dump.read_bytes()
        before = size
        time.sleep(POLL)
    return None
