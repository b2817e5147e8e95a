"""One door to Ray: an embedded cluster that lives as long as a command, or a running one.

Authentication is said explicitly, because Ray otherwise turns it on wherever it finds a token. An
embedded cluster listens on loopback and sends no usage statistics.
"""

import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from panthalassa.config import Cluster
from panthalassa.errors import ConfigError, PanthalassaError

OBJECT_STORE = 256 << 20
ANSWER = 10
"""Seconds for a cluster to accept a connection."""
JOB, PATH = "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONPATH"
"""The variable in which Ray tells the driver of a job about it, and that of Python's packages."""
GRACE = 5
"""Seconds that Ray's processes have to end after its shutdown."""
TOKEN = (
    "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN_PATH (a file) or RAY_AUTH_TOKEN"
)


@contextmanager
def connected(
    cluster: Cluster, debug: bool = False, dashboard: bool = False
) -> Iterator[list[psutil.Process]]:
    """Ray for the length of the block; joins the cluster of this process if it has one already.

    Yields a list that the block may add to: processes which Ray ends with this driver, and which are
    killed if it does not (a worker of Ray 2.60 can hang for ever in its exit handlers).
    dashboard: have an embedded one with its dashboard's process, at any port if none is configured.
    Raises ConfigError when the dashboard's port is taken, and PanthalassaError when no cluster answers
    at the address, it does not let us in, or it runs another Ray or Python.
    """
    if cluster.address == "local" and cluster.dashboard_port is not None:
        _check_port(cluster.dashboard_port)
    set_authentication()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The places of ranks are known to be there when they are asked for, dead ranks shall be seen soon,
    # and the driver itself watches for drains.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if cluster.address == "local":
        # Despite its name: the ranks, too, find each other over loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if cluster.dashboard_port is None:
            # Nobody would see them, and each of Ray's processes spends a part of a core on them.
            os.environ.setdefault("RAY_enable_metrics_collection", "0")
            os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray  # reads the environment when it is imported

    if ray.is_initialized():
        check_resources(cluster)
        yield []
        return
    level = logging.INFO if debug else logging.ERROR
    before = psutil.Process().children()
    try:
        if cluster.address == "local":
            with _in_background(), _in_another_process_group(), _at_a_known_address():
                ray.init(
                    address="local",
                    _node_ip_address="127.0.0.1",
                    num_cpus=_cpus(cluster),
                    object_store_memory=OBJECT_STORE,
                    include_dashboard=dashboard or cluster.dashboard_port is not None,
                    dashboard_port=cluster.dashboard_port,
                    log_to_driver=debug,
                    logging_level=level,
                )
        else:
            check_answer(cluster.address)
            _check_token(cluster.address)
            ray.init(
                address=cluster.address,
                log_to_driver=debug,
                logging_level=level,
                runtime_env=_of_this_job(),
            )
    except PanthalassaError:
        raise
    except Exception as error:  # Ray has no class for what keeps it from starting
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if reason[0].startswith("Version mismatch"):
            reason = [f"{' '.join(' '.join(reason).split())}. Both have to be the same."]
        raise PanthalassaError(
            f"no Ray at {cluster.address} (key cluster.address): {reason[0]}"
        ) from error
    ending: list[psutil.Process] = []
    try:
        check_resources(cluster)
        yield ending
    finally:
        for child in set(psutil.Process().children()) - set(before):
            ending += child, *child.children(recursive=True)
        ray.shutdown()
        _, left = psutil.wait_procs(ending, GRACE)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def submitted_job() -> dict[str, Any]:
    """What Ray tells the driver of a submitted job about it; nothing in any other process."""
    return dict(json.loads(os.environ.get(JOB, "{}")))


def _of_this_job() -> dict[str, Any]:
    """What lets the workers of a submitted job find this package in the job's working directory.

    Nothing where the job says so itself, or the package comes from elsewhere, as from an image.
    """
    job = submitted_job().get("runtime_env", {})
    package, here = Path(__file__).parents[1], Path.cwd()
    if (
        "working_dir" not in job
        or PATH in job.get("env_vars", {})
        or not package.is_relative_to(here)
    ):
        return {}
    return {"env_vars": {PATH: str(package.relative_to(here))}}


def set_authentication() -> None:
    """Say whether Ray authenticates by token; unsaid, it does wherever it finds one.

    Raises ConfigError for what Ray would end the process at.
    """
    mode = os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if mode.lower() not in ("disabled", "token"):
        raise ConfigError(f"RAY_AUTH_MODE={mode}: expected token or disabled")


@contextmanager
def _in_background() -> Iterator[None]:
    """Processes that start here never interrupt one that computes; it has to give way by itself.

    Ray keeps a dozen processes, each of which wakes up a hundred times a second: on two cores that
    takes 3 % of a step. The ranks call `compute`. Linux only; elsewhere nothing changes.
    """
    if not hasattr(os, "SCHED_BATCH"):
        yield
        return
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


@contextmanager
def _in_another_process_group() -> Iterator[None]:
    """Processes that start here get no signal that is meant for all of this command.

    `timeout` and batch systems send SIGTERM to the whole process group. It is for this process to end
    the run then, for which it needs Ray. The first process of a session can not change its group.
    """
    before = os.getpgrp()
    if os.getsid(0) == os.getpid():
        yield
        return
    leader = subprocess.Popen(["sleep", "600"], process_group=0)
    try:
        os.setpgid(0, leader.pid)
        yield
    finally:
        os.setpgid(0, before)
        leader.kill()
        leader.wait()


@contextmanager
def _at_a_known_address() -> Iterator[None]:
    """Processes that start here ask the Ray that starts here how their actors are.

    Without RAY_ADDRESS those of Ray Train ask the newest one of this machine, and when that does not
    know their actors, they take them for dead, and the places of ranks that train away.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meant = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    before = {name: os.environ.get(name) for name in meant}
    os.environ.update(meant)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def compute() -> None:
    """Let this thread, and those that it starts, be scheduled as one that computes."""
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def mendable(error: BaseException) -> PanthalassaError | None:
    """The PanthalassaError of a task inside an error of Ray, without what Ray adds to its text."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, PanthalassaError):
            original = getattr(inner, "cause", inner)  # Ray's class of it derives from both
            text, _, _ = str(original).partition("\nFailed to apply UDF")
            return type(original)(text)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return None


def check_resources(cluster: Cluster) -> None:
    """Raises ConfigError when an embedded cluster does not have the GPUs that the ranks want.

    A running one may still grow, so there the ranks wait.
    """
    import ray

    wanted = cluster.workers * cluster.gpus_per_worker
    found = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if cluster.address == "local" and found < wanted:
        raise ConfigError(
            f"cluster.workers={cluster.workers} with cluster.gpus_per_worker=1 want {wanted} GPUs; "
            f"this machine has {found}. Lower them, or set cluster.address to a cluster that has them."
        )


def _cpus(cluster: Cluster) -> int:
    """All of this machine's, and at least enough for the ranks and one more that reads for them."""
    needed = int(cluster.workers * cluster.cpus_per_worker) + 1
    return max(os.cpu_count() or 1, needed)


def check_answer(address: str) -> None:
    """Raises OSError when nothing listens at host:port, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def _check_token(address: str) -> None:
    """Raises PanthalassaError when the cluster does not let us in.

    Ray itself would ask again for 20 s, and then say that it can not connect.
    """
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    where = None if address.startswith("ray://") else canonicalize_bootstrap_address(address)
    if where is None:
        return
    try:
        with init_grpc_channel(where) as channel:
            gcs = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            gcs.GetClusterId(GetClusterIdRequest(), timeout=ANSWER)
    except (AuthenticationError, grpc.RpcError) as error:
        if (
            isinstance(error, AuthenticationError)
            or error.code() is grpc.StatusCode.UNAUTHENTICATED
        ):
            raise PanthalassaError(
                f"the cluster at {address} (key cluster.address) wants its token and did not get it: "
                f"set {TOKEN}"
            ) from error


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} (key cluster.dashboard_port) can not be used: {error.strerror}. "
                "Choose another, or leave the key out to run without a dashboard."
            ) from error
