"""A cluster as its users start it, `ray start --head`: one node on loopback that wants a token."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from processes import MARK, marked
from processes import title as title_of

RAY = (sys.executable, "-m", "ray.scripts.scripts")
PATIENCE = 120


@dataclass(frozen=True)
class Head:
    """A running head and who may use it."""

    url: str
    """Of its dashboard."""
    address: str
    """Of the cluster."""
    folder: Path
    """Where Ray keeps its files."""
    environment: dict[str, str]
    """Of its processes, and of a user that is let in."""

    def processes(self, title: str) -> list[psutil.Process]:
        """Those whose command line begins with `title`."""
        return [found for found in self._all() if title_of(found).startswith(title)]

    def _all(self) -> list[psutil.Process]:
        return marked(self.environment[MARK])

    def end(self) -> None:
        """Whatever of it is left."""
        for process in self._all():
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def head(cpus: int = 4) -> Iterator[Head]:
    """A head for the length of the block, with a private home and temporary folder."""
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary)
        (folder / "token").write_text(secrets.token_hex(16))
        port, dashboard, agent, client = _free_ports(4)
        environment = {
            **os.environ,
            "HOME": temporary,
            MARK: uuid.uuid4().hex,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }
        for name in ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            environment.pop(name, None)
        command = [
            *(*RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
            *("--port", str(port), "--ray-client-server-port", str(client)),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--dashboard-agent-listen-port", str(agent), "--temp-dir", temporary),
            *("--num-cpus", str(cpus), "--object-store-memory", str(200 << 20)),
        ]
        running = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", folder, environment)
        with (folder / "start.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait_for_dashboard(running, process)
            yield running
        finally:
            running.end()
            process.wait(PATIENCE)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_dashboard(running: Head, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"{running.url}/api/authentication_mode", timeout=5).close()
            return
        except OSError:
            text = (running.folder / "start.log").read_text()
            assert process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.2)
