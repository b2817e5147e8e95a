"""A run as jobs on a real head that wants a token: sent, watched, killed, stopped, sent again, complete.

The head has no package of its own on its path, so what the ranks run is what was uploaded.
"""

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pexpect
import pytest
import yaml
from conftest import PLATFORM, tree
from heads import RAY, Head, head

from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import committed, step_of

pytestmark = pytest.mark.ray
PATIENCE = 240
ROOT = PLATFORM.parent
STEPS = 20_000
"""More than any job here comes to, before the last one lowers it."""
MARK = """
import os as _os, pathlib as _pathlib
(_pathlib.Path({folder!r}) / str(_os.getpid())).write_text(__file__)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head() as running:
        yield running


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the repository with texts of its own, whose ranks tell which file they run."""
    copy, marks = tmp_path / "repository", tmp_path / "marks"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "corpora")
    for name in ("platform", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for language in ("id", "sw"):
        shutil.copytree(ROOT / "jobs" / "corpora" / "sea" / language, copy / "texts" / language)
    git = "git", "-C", str(copy), "-c", "user.name=me", "-c", "user.email=me@example.org"
    for command in (("init", "-q"), ("add", "platform"), ("commit", "-q", "-m", "first")):
        subprocess.run([*git, *command], check=True)
    for unsent in (".git", ".venv", "runs/other/step-00000001"):
        (copy / unsent).mkdir(parents=True, exist_ok=True)
        (copy / unsent / "file").write_text("not for the cluster")
    marks.mkdir()
    with (copy / "platform" / "panthalassa" / "train" / "worker.py").open("a") as worker:
        worker.write(MARK.format(folder=str(marks)))
    config = tree(Path("data/small"), Path())
    config |= {
        "run": {"name": "small"},
        "corpus": {
            "directory": "data/small",
            "sources": ["texts"],
            "sequence_length": 64,
            "vocabulary_size": 352,
            "rows_per_group": 8,
        },
        "checkpoint": {"every": 10},
        "evaluation": {"every": 10_000, "samples": 8},
    }
    config["train"]["steps"] = STEPS  # type: ignore[index]
    (copy / "jobs" / "configs" / "small.yaml").write_text(yaml.safe_dump(config))
    return copy


@pytest.fixture
def user(cluster: Head, repository: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """user("submit", …): a command of somebody who has the token, in a terminal of theirs."""
    started: list[pexpect.spawn] = []

    def run(*arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "panthalassa.cli", *arguments],
            cwd=str(repository),
            env=environment(cluster),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(40, 200),
        )
        started.append(child)
        return child

    yield run
    for child in started:
        child.close(force=True)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, "wants its token and got no token"),
        ({"RAY_AUTH_TOKEN": "another"}, "wants its token and got this token"),
        ({"RAY_AUTH_MODE": "on"}, "RAY_AUTH_MODE=on: expected token or disabled"),
    ],
)
def test_who_has_no_token_is_refused(
    cluster: Head, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "panthalassa.cli", "jobs", "status"],
        env=environment(cluster) | {"HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("panthalassa: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "another" not in done.stderr


ANOTHER_RAY = "import ray; ray.__version__ = '2.59.0'; from panthalassa.cli import app; app()"


@pytest.mark.parametrize(
    ("variables", "program", "message"),
    [
        (
            {"RAY_AUTH_MODE": "disabled"},
            ("-m", "panthalassa.cli"),
            "wants its token and did not get",
        ),
        ({"RAY_AUTH_TOKEN_PATH": ""}, ("-m", "panthalassa.cli"), "wants its token and did not get"),
        ({}, ("-c", ANOTHER_RAY), r"Ray: \d+\S+ Python: .* Ray: 2.59.0 Python: "),
    ],
)
def test_a_command_that_does_not_fit_to_the_cluster_it_joins_is_refused(
    cluster: Head,
    repository: Path,
    variables: dict[str, str],
    program: tuple[str, str],
    message: str,
) -> None:
    address = f"cluster.address={cluster.address}"
    done = subprocess.run(
        [sys.executable, *program, "prepare", "jobs/configs/small.yaml", address],
        cwd=repository,
        env=environment(cluster) | {"HOME": str(repository)} | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(f"panthalassa: .*{message}", line)


def environment(cluster: Head) -> dict[str, str]:
    return cluster.environment | {
        "PYTHONPATH": str(PLATFORM),
        "RAY_API_SERVER_ADDRESS": cluster.url,
        "PANTHALASSA_TEST": "user",
    }


def ended(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus)


def test_a_run_goes_on_through_whatever_happens_to_its_jobs(
    cluster: Head, repository: Path, user: Callable[..., pexpect.spawn], tmp_path: Path
) -> None:
    config = "jobs/configs/small.yaml"

    preparing = user("submit", config, "--job", "prepare")
    preparing.expect("fingerprint")
    assert ended(preparing) == 0
    assert (repository / "data" / "small" / "manifest.json").exists(), "beside the submitter"

    first = user("submit", config)
    first.expect("job (pretrain-small-[0-9a-f]+) at")
    first.expect(rf"step [1-9]\d*/{STEPS} .*loss")
    rank = cluster.processes("ray::RayTrainWorker")[0]
    rank.kill()
    first.expect("the ranks were lost")
    first.expect("going on after step")
    first.expect("first step after")
    first.sendintr()
    first.expect("asked to stop, with a checkpoint")
    first.expect(r"stopped as asked; the same command goes on, after step (\d+)")
    stopped_at = int(first.match.group(1))
    assert ended(first) == 0

    assert ended(user("submit", config, "--detach")) == 0
    second = user("jobs", "follow", "small")
    second.expect(f"going on after step {stopped_at}\r")
    second.expect("checkpoint .*/step-")
    listed = user("jobs", "status")
    listed.expect(r"pretrain-small-\w+ +stopped since")
    listed.expect(r"pretrain-small-\w+ +running since")
    assert ended(listed) == 0
    driver = cluster.processes(f"{sys.executable} jobs/pretrain.py")[0]
    driver.kill()
    assert ended(second) == 128 + signal.SIGKILL

    # Ray's own command, which is told nothing about the package.
    last = step_of(committed(open_storage(f"{repository}/runs/small"))[-1]) + 50
    done = subprocess.run(
        [
            *(*RAY, "job", "submit", "--working-dir", ".", "--", sys.executable),
            *("jobs/pretrain.py", "--config", config),
            *(f"run.directory={repository}/runs", f"corpus.directory={repository}/data/small"),
            f"train.steps={last}",
        ],
        cwd=repository,
        env=environment(cluster),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"small: complete, after step {last}" in done.stdout

    audit = user("audit", "runs/small")
    audit.expect("PASS")
    assert ended(audit) == 0
    head = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    with closing(sqlite3.connect(repository / "runs" / "mlflow.db")) as store:
        query = "SELECT value FROM tags WHERE key = 'mlflow.source.git.commit'"
        assert store.execute(query).fetchall() == [(commit,)]
    files = [mark.read_text() for mark in (tmp_path / "marks").iterdir()]
    assert len(files) >= 3 * 3, "the driver and two ranks of each job"
    assert all(str(cluster.folder) in file for file in files), files
    token = (cluster.folder / "token").read_text()
    logs = (file for file in cluster.folder.rglob("*") if file.is_file() and file.name != "token")
    assert not [file for file in logs if token.encode() in file.read_bytes()]
