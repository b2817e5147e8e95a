"""Jobs on a running cluster: a configuration comes in, a job that runs it is sent, and found again.

A job runs `jobs/NAME.py` in what `upload` sends along, with that copy of the package on the path of
the driver and of all workers. Only this side knows where a relative folder is meant to be: on a cluster
that is all on this machine it becomes absolute, on any other it is refused.
"""

import json
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from panthalassa.config import Config
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.config import Evaluation, anchored
from panthalassa.jobs.driver import (
    Command,
    is_relative,
    read_config,
    refuse_relative,
    relative_folders,
)
from panthalassa.jobs.upload import TEXTS, largest, uploaded
from panthalassa.redact import without_secrets
from panthalassa.storage import open_storage
from panthalassa.tracking.provenance import COMMIT, commit

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Job = Literal["pretrain", "prepare", "sweep", "finetune", "evaluate"]
COMMANDS: dict[str, Command] = {
    "pretrain": "train",
    "prepare": "prepare",
    "sweep": "sweep",
    "finetune": "finetune",
    "evaluate": "evaluate",
}
STOP_WAIT, STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 600
"""Time for a checkpoint between the signal to stop and the kill; Ray's own is 3."""
AGENT_SECONDS = 60.0
"""Time that a cluster which has just started may take until it accepts jobs."""
ALL_NODES = 10_000


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster."""

    entrypoint: str
    """The command of the job's driver."""
    files: dict[str, Path]
    """What goes along beside the package and `jobs/`, by its path in the job."""
    excludes: list[str]
    """What does not."""


def submit(
    client: "JobSubmissionClient",
    path: Path,
    overrides: list[str],
    job: Job = "pretrain",
    directory: Path = Path(),
) -> str:
    """Send a job that runs the configuration at `path`; returns its id.

    directory: the root of the repository. Raises ConfigError for what can not be run, and
    PanthalassaError when the cluster does not take the job.
    """
    config = read_config(path, overrides, COMMANDS[job])
    name = _name(config)
    request = plan(config, path, overrides, job, directory.resolve(), _on_this_machine(client))
    version = {COMMIT: known} if (known := commit(directory)) else {}
    with uploaded(directory.resolve(), request.files) as folder:
        return _send(
            client,
            folder,
            entrypoint=request.entrypoint,
            submission_id=f"{job}-{name}-{uuid.uuid4().hex[:8]}",
            metadata={"run": name},
            runtime_env={
                "working_dir": str(folder),
                "excludes": request.excludes,
                "env_vars": {
                    "PYTHONPATH": "platform",
                    STOP_WAIT: str(STOP_SECONDS),
                    **version,
                },
            },
        )


def _name(config: Config | Evaluation) -> str:
    """Of the run; of an evaluation that of its folder."""
    if isinstance(config, Evaluation):
        return re.sub(r"[^A-Za-z0-9._-]", "-", open_storage(config.output).uri.rpartition("/")[2])
    return config.run.name


def plan(
    config: Config | Evaluation,
    path: Path,
    overrides: list[str],
    job: Job,
    directory: Path,
    local: bool,
) -> Request:
    """The request for a job; `local`: all of the cluster is on this machine.

    Raises ConfigError for secrets on the command line, and for folders that the job could not see.
    """
    _refuse_secrets(overrides)
    command = COMMANDS[job]
    inside = path.resolve().is_relative_to(directory)
    name = str(path.resolve().relative_to(directory)) if inside else path.name
    files = {name: path}
    if job == "sweep":
        from panthalassa.sweep.space import base

        if below := base(path):
            files[str(Path(name).with_name(below.name))] = below
    texts = {}
    if job in ("prepare", "finetune") and isinstance(config, Config):
        texts = _relative_texts(config)
    if local:
        meant: dict[str, object] = (
            anchored(config)
            if isinstance(config, Evaluation)
            else {
                key: str(Path(place).absolute())
                for key, place in relative_folders(config, command).items()
            }
        )
        for key, names in texts.items():
            meant[key] = [str(Path(name).absolute()) if _is_text(name) else name for name in names]
        overrides = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in meant.items())]
    else:
        refuse_relative(config, command)
        files |= _texts(texts, directory)
    python = sys.executable if local else "python"
    return Request(
        shlex.join([python, f"jobs/{job}.py", "--config", name, *overrides]),
        files,
        [] if texts and not local else [TEXTS],
    )


def _refuse_secrets(overrides: list[str]) -> None:
    for override in overrides:
        if without_secrets(override) != " ".join(override.split()):
            raise ConfigError(
                f"override {override.partition('=')[0]}: there is a secret in it, and all who use a "
                "cluster see what its jobs are called with. Give it to the nodes in their environment."
            )


def _on_this_machine(client: "JobSubmissionClient") -> bool:
    """Whether all nodes have addresses of this machine; one behind a forwarded port has not."""
    from ray.util.state import list_nodes

    mine = {found.address for every in psutil.net_if_addrs().values() for found in every}
    nodes = list_nodes(
        client.get_address(),
        filters=[("state", "=", "ALIVE")],
        limit=ALL_NODES,
        raise_on_missing_output=False,
    )
    return all(node.node_ip in mine for node in nodes)


def _relative_texts(config: Config) -> dict[str, list[str]]:
    """Keys of a preparation that name texts of this machine, with all of their places."""
    places = {
        "corpus.sources": config.corpus.sources,
        "corpus.evaluation_files": config.corpus.evaluation_files,
    }
    return {key: names for key, names in places.items() if any(map(_is_text, names))}


def _is_text(name: str) -> bool:
    from panthalassa.corpus.sources import PYTHON_REFERENCE  # with it come slow imports

    return is_relative(name) and name != PYTHON_REFERENCE


def _texts(texts: dict[str, list[str]], directory: Path) -> dict[str, Path]:
    """What goes along with a preparation on another machine."""
    found = {}
    for key, name in ((key, name) for key, names in texts.items() for name in names):
        if not _is_text(name):
            continue
        found[name] = place = directory / name
        if not place.resolve().is_relative_to(directory) or not place.exists():
            raise ConfigError(
                f"{key}: {name} is nothing below {directory}, which is all that a job gets. "
                "Give an absolute path that all nodes see, or s3://bucket/prefix."
            )
    return found


def _send(client: "JobSubmissionClient", folder: Path, **job: Any) -> str:
    until = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(**job))
        except (RuntimeError, OSError) as error:
            reason = str(error)
            if "No available agent" in reason and time.monotonic() < until:
                time.sleep(0.5)
                continue
            if "status code 413" in reason:
                raise PanthalassaError(
                    "what the job needs of this machine is larger than Ray takes (100 MiB, packed): "
                    f"{largest(folder)}. Move texts and data elsewhere, or name them in .rayignore."
                ) from error
            lines = reason.strip().splitlines() or [type(error).__name__]
            raise PanthalassaError(
                f"the cluster at {client.get_address()} does not take the job: {lines[-1]}"
            ) from error


def find(client: "JobSubmissionClient", name: str) -> "JobDetails":
    """The job of that id, or of that run: the one that runs, else the last one."""
    found = [
        job for job in jobs(client) if name in (job.submission_id, (job.metadata or {}).get("run"))
    ]
    if not found:
        raise PanthalassaError(
            f"no job {name!r} at {client.get_address()}; `panthalassa jobs status` lists them"
        )
    return max(found, key=lambda job: (not job.status.is_terminal(), job.start_time or 0))


def jobs(client: "JobSubmissionClient") -> "list[JobDetails]":
    """The submitted jobs of the cluster, those of others included, in the order of their start."""
    every = [job for job in client.list_jobs() if job.submission_id]
    return sorted(every, key=lambda job: job.start_time or 0)


def explain(client: "JobSubmissionClient") -> Iterator[tuple[str, str]]:
    """Each job and how it stands: since when, and for one that runs the last line of its log."""
    for job in jobs(client):
        since = datetime.fromtimestamp((job.end_time or job.start_time or 0) / 1e3)
        text = f"{job.status.value.lower()} since {since:%Y-%m-%d %H:%M:%S}"
        if not job.status.is_terminal():
            lines = client.get_job_logs(str(job.submission_id)).strip().splitlines()
            text += f": {lines[-1]}" if lines else ""
        yield str(job.submission_id), text
