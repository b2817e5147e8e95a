"""A job submitted to Ray sees the standard library's `platform`, beside a folder of that name."""

import shlex
import sys
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[1]
PATIENCE = 120
SCRIPT = "import os, platform; print(os.path.isdir('platform'), platform.__file__)"


def test_a_submitted_job_imports_the_standard_librarys_platform(ray_cluster: str) -> None:
    deadline = time.monotonic() + PATIENCE
    client = JobSubmissionClient(ray_cluster)
    job = submit(client, deadline)
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.5)
    logs = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, logs
    beside, file = logs.split()[-2:]
    assert beside == "True", "the working directory has a folder `platform`"
    assert Path(file).name == "platform.py"


def submit(client: JobSubmissionClient, deadline: float) -> str:
    """Submit the script from the repository; Ray's agent may take a while to be there."""
    while True:
        try:
            return client.submit_job(
                entrypoint=f'{shlex.quote(sys.executable)} -c "{SCRIPT}"',
                runtime_env={"working_dir": str(ROOT), "excludes": ["tests", "jobs"]},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
