"""The sandbox: generated programs are run where they can do no harm.

Each program is a process of its own, in namespaces of its own: it has no network, sees no file but
Python's and the system's libraries, writes to nothing but a private folder in memory, reads no
environment and no input, is an unprivileged user, and has limits (Limits). With its end everything that
it started is ended. `sandboxed.py` is what does that, between this process and the program. A program
that prints a line takes 40 ms of a processor with it, 70 ms and more by the clock, and three processes
with 29 MB together, most of them pages of Python that they share (measured on an AMD EPYC).

It needs Linux 5.12 or later, and root with CAP_SYS_ADMIN, or user namespaces for everybody. Where there
are none (many containers forbid them), programs are refused, but for those who accept that they run with
limits alone. Memory is limited for each process, so that a program has `processes` times `memory`; what
would be memory of no process (System V objects, files without a folder) is refused.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from panthalassa.errors import PanthalassaError

INSIDE = Path(__file__).parent / "sandboxed.py"
GRACE_SECONDS = 60
"""For what surrounds a program, on a loaded machine."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: int = 10
    """By the clock, and of a processor for each process."""
    memory: int = 512 << 20
    """Bytes of addresses of a process."""
    file_bytes: int = 1 << 20
    """Of a file, and of what is printed."""
    folder_bytes: int = 32 << 20
    """Of all files together."""
    files: int = 64
    """That are open in a process."""
    processes: int = 8
    """And threads."""


@dataclass(frozen=True)
class Ending:
    """How a program ended."""

    status: int | None
    """Its exit status, 128 and more for signals; None when its time was over."""
    output: str
    """What it printed, errors too."""


def run(program: str, limits: Limits | None = None, confine: bool = True) -> Ending:
    """Run a Python program that needs only the standard library.

    Without `confine` it runs with limits alone, as this user, with this user's files and network. What
    it started is ended with it, unless it kills the processes that would do that.
    Raises PanthalassaError where programs can not be confined.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
        request = {
            "program": program,
            "limits": asdict(limits or Limits()),
            "confine": confine,
            "folder": folder,
        }
        ending = _supervise(request, output)
        output.seek(0)
        told = output.read((limits or Limits()).file_bytes).decode(errors="replace")
    if "refused" in ending:
        raise PanthalassaError(
            f"programs can not be run in isolation here: {ending['refused']}. The sandbox needs Linux "
            "5.12, and root with CAP_SYS_ADMIN or user namespaces for everybody (sysctl "
            "user.max_user_namespaces; in a container also its seccomp profile). Run the evaluation "
            "where it has them, or accept programs that are not isolated"
        )
    return Ending(ending["status"], told)


def _supervise(request: dict[str, Any], output: Any) -> dict[str, Any]:
    reading, writing = os.pipe()
    with open(reading, "rb") as endings:
        with open(writing, "wb"):
            process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-B", str(INSIDE), str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        try:
            process.communicate(
                json.dumps(request).encode(), request["limits"]["seconds"] + GRACE_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"status": None}
        finally:
            if process.returncode is None:  # what is inside ends with it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        told = endings.readline()
    if not told:
        output.seek(0)
        raise RuntimeError(f"the sandbox ended by itself: {output.read().decode(errors='replace')}")
    found: dict[str, Any] = json.loads(told)
    return found
