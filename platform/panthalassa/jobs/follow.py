"""A job as its submitter sees it: its log comes in, the display of `panthalassa train` goes out.

The log is read again from where it was when the connection breaks, because the job goes on. A first
Ctrl-C asks the job to stop at a step boundary, with a checkpoint; a second one leaves it to itself.
"""

import asyncio
import re
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from panthalassa.errors import PanthalassaError
from panthalassa.jobs.submit import STOP_WAIT
from panthalassa.train.display import STOPPED, literal, progress_bar

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STEP = re.compile(r"step (\d+)/(\d+)  (.+)")
"""A line of the display that stands for the bar."""
COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""What Ray puts around the names of its processes."""
PATIENCE = 120.0
"""Seconds for which the cluster may be away."""
RETRY = 2.0
POLL = 0.5
SIGINT, SIGTERM = 130, 143
"""Exit codes of programs that these have ended."""


class Log:
    """Shows the log of a job as it comes; use as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = progress_bar(console)
        self._read = 0
        self._rest = ""

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._show(self._rest)
        self._bar.stop()

    async def follow(self, client: "JobSubmissionClient", job: str) -> None:
        """Show what is new until the job or the connection ends."""
        at = 0
        async for text in client.tail_job_logs(job):
            new, at = text[max(0, self._read - at) :], at + len(text)
            self._read = max(self._read, at)
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._show(line)

    def _show(self, line: str) -> None:
        step = STEP.fullmatch(line) if self._console.is_terminal else None
        if step:
            done, total, text = step.groups()
            task = (self._bar.task_ids or [self._bar.add_task("")])[0]
            self._bar.update(task, completed=int(done), total=int(total), description=text)
        elif line:
            self.say(line)

    def say(self, line: str) -> None:
        self._console.print(literal(COLOUR.sub("", line).expandtabs()), soft_wrap=True)


def follow(client: "JobSubmissionClient", job: str, console: Console) -> int:
    """Show a job until it ends; returns its exit code, or 130 when it is left by a second Ctrl-C.

    Raises PanthalassaError when the cluster is away for too long; the job goes on.
    """
    asked, failures = False, 0
    with Log(console) as log:
        while True:
            began = time.monotonic()
            try:
                asyncio.run(log.follow(client, job))
                if client.get_job_info(job).status.is_terminal():
                    break
            except KeyboardInterrupt:
                if asked:
                    log.say(f"left; `panthalassa jobs follow {job}` shows its end")
                    return SIGINT
                asked = True
                _ask_to_stop(client, job)
                log.say("asked to stop, with a checkpoint (once more to leave it)")
            except Exception as error:  # whatever has cut the connection
                failures = 1 if time.monotonic() > began + RETRY else failures + 1
                if failures * RETRY > PATIENCE:
                    raise PanthalassaError(
                        f"the cluster at {client.get_address()} is away: {error}. The job goes on; "
                        f"`panthalassa jobs follow {job}` shows it."
                    ) from error
                time.sleep(RETRY)
    return exit_code(client, job, console)


def stop(client: "JobSubmissionClient", job: str, console: Console) -> int:
    """Ask a job to stop, with a checkpoint, and wait for its end; returns its exit code.

    Raises PanthalassaError when it does not run any more, or Ray would kill it before its checkpoint.
    """
    if not _ask_to_stop(client, job):
        raise PanthalassaError(f"job {job} does not run any more")
    console.print(f"{job} stops after this step, with a checkpoint", markup=False)
    try:
        while not client.get_job_info(job).status.is_terminal():
            time.sleep(POLL)
    except KeyboardInterrupt:
        console.print(f"left; `panthalassa jobs follow {job}` shows its end", markup=False)
        return SIGINT
    return exit_code(client, job, console)


def _ask_to_stop(client: "JobSubmissionClient", job: str) -> bool:
    """Ray sends SIGTERM, which ends a run at a step boundary, and waits as long as the job has said.

    Whether the job still ran. Raises PanthalassaError when Ray would kill it before its checkpoint.
    """
    variables = (client.get_job_info(job).runtime_env or {}).get("env_vars") or {}
    if STOP_WAIT not in variables:
        raise PanthalassaError(
            f"job {job} was sent without {STOP_WAIT}, so Ray kills it 3 s after asking it to stop. "
            "Stop its run with `panthalassa stop` and the run's folder, or the job with `ray job stop`."
        )
    return bool(client.stop_job(job))


def exit_code(client: "JobSubmissionClient", job: str, console: Console) -> int:
    """How an ended job ended: as its driver did, whose code Ray keeps to itself when it stops it."""
    info = client.get_job_info(job)
    log = client.get_job_logs(job)
    how, code = info.status.value.lower(), info.driver_exit_code
    if how == "stopped":
        code = 0 if STOPPED in log else SIGTERM
    elif code is None:  # it never came to its command
        code, how = 1, f"{how}: {info.message}"
    code = 128 - code if code < 0 else code
    console.print(literal(f"job {job} {how}, exit code {code}"), soft_wrap=True)
    return code
