"""A Ray cluster of several raylets on this host, which stand for nodes, and a command that trains on it.

Nodes come, die (with all their processes), and are drained; the run is a process of its own, as for
its users. Everything listens on loopback, and ends with the block.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from processes import title

from panthalassa.cluster import GRACE
from panthalassa.config import Config

STORE = 80 << 20
CPUS = 1.25
"""CPUs of a rank: more than the head has."""


FAULTS = int(os.environ.get("CHAOS_FAULTS", "3"))
LONG = (
    f"train.steps={30 + 20 * FAULTS}",
    "train.global_batch=48",
    "evaluation.every=1000",
    "evaluation.prompts=[]",
)
"""A run long enough for so many faults, one after the other."""


class Nodes:
    """The nodes of a cluster. The head holds no rank, but has room for reading tasks."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": str(folder), **options}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args=head | {"object_store_memory": STORE, "node_ip_address": "127.0.0.1"},
        )
        self.address: str = self._cluster.address

    def add(self, places: int | None, **options: Any) -> Any:
        """A node with room for so many ranks of CPUS each, and for reading; None for no room at all."""
        cpus = 0 if places is None else places + 1
        return self._cluster.add_node(
            num_cpus=cpus, object_store_memory=STORE, node_ip_address="127.0.0.1", **options
        )

    def kill(self, node: Any) -> None:
        """End a node as a power cut does: the raylet and all that runs below it, at once."""
        for started in node.all_processes.values():
            for info in started:
                for process in _family(info.process.pid):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node: Any) -> None:
        """End a node's raylet alone; its machine still answers."""
        (raylet,) = node.all_processes["raylet"]
        raylet.process.kill()
        raylet.process.wait()

    def drain(self, node: Any, seconds: int = 120) -> None:
        """Announce that a node will be taken away."""
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
            *("--address", self.address, "--node-id", node.node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"),
            *("--deadline-remaining-seconds", str(seconds)),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def ranks(self, *nodes: Any) -> list[psutil.Process]:
        """The processes of the ranks on these nodes, or all, those that just start included."""
        found = []
        for node in nodes or self._cluster.list_all_nodes():
            for info in node.all_processes.get("raylet", []):
                with suppress(psutil.NoSuchProcess):
                    found += psutil.Process(info.process.pid).children(recursive=True)
        return [process for process in found if title(process).startswith("ray::RayTrainWorker")]

    def shutdown(self) -> None:
        """A worker of Ray 2.60 can hang for ever in its exit handlers, when its raylet is gone."""
        started = [
            process
            for node in self._cluster.list_all_nodes()
            for infos in node.all_processes.values()
            for info in infos
            for process in _family(info.process.pid)
        ]
        self._cluster.shutdown()
        _, left = psutil.wait_procs(started, GRACE)
        for process in left:
            process.kill()


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def known(name: str, group: str) -> dict[str, Any]:
    """Options of a node that an autoscaler knows by this name."""
    return {"env_vars": {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group}}


@contextmanager
def cluster_of(*places: int, **options: Any) -> Iterator[tuple[Nodes, list[Any]]]:
    """A head, with `options`, and a node for each number of `places`."""
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        nodes = Nodes(Path(folder), **options)
        try:
            yield nodes, [nodes.add(count) for count in places]
        finally:
            nodes.shutdown()


def tracked_losses(database: Path) -> dict[int, float]:
    """The loss of each step, as MLflow has it: once."""
    with closing(sqlite3.connect(database)) as store:
        found = store.execute("SELECT step, value FROM metrics WHERE key = 'loss'").fetchall()
    losses = dict(found)
    assert len(losses) == len(found), "steps that are there twice"
    return losses


def tracked_status(database: Path) -> str:
    """How the only run stands, as MLflow has it."""
    with closing(sqlite3.connect(database)) as store:
        ((status,),) = store.execute("SELECT status FROM runs").fetchall()
    return str(status)


def elastic(address: str) -> list[str]:
    """What a run on two to four ranks of such a cluster changes in a configuration."""
    return [
        f"cluster.address={address}",
        f"cluster.cpus_per_worker={CPUS}",
        "cluster.workers=4",
        "cluster.min_workers=2",
    ]


class Command:
    """`panthalassa train` in a process of its own; its output is in `log`."""

    command = "train"
    program: Sequence[str] = ("-m", "panthalassa.cli")

    def __init__(self, config: Config, folder: Path, name: str = "train") -> None:
        path, self.log = folder / f"{name}.yaml", folder / f"{name}.log"
        path.write_text(config.dump())
        environment = {**os.environ, "HOME": str(folder), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, self.command, str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_for(self, seen: Callable[[str], bool], what: str, patience: float = 300) -> str:
        """The output, as soon as `seen` of it."""
        until = time.monotonic() + patience
        while not seen(text := self.log.read_text()):
            assert time.monotonic() < until, f"no {what} in time:\n{text}"
            assert self.process.poll() is None, f"ended before {what}:\n{text}"
            time.sleep(0.1)
        return text

    def wait(self, patience: float = 300) -> str:
        """All of the output, when it has ended by itself."""
        self.process.wait(patience)
        return self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
