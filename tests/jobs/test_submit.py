"""What a job is asked with, and what is refused before a cluster has anything to do with it."""

import http.server
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from conftest import PLATFORM
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.config_file import load
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.finetune import config as tuning
from panthalassa.jobs.driver import read_config
from panthalassa.jobs.server import connect
from panthalassa.jobs.submit import Request, plan, submit

ROOT = PLATFORM.parent
LAPTOP = ROOT / "jobs" / "configs" / "laptop.yaml"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current directory, with Ray's variables as they were afterwards."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(local: bool, job: str, *overrides: str, path: Path = LAPTOP) -> Request:
    config = load(path, list(overrides))
    return plan(config, path, list(overrides), job, ROOT, local)  # type: ignore[arg-type]


def received(request: Request) -> tuple[list[str], Config]:
    """The command of a request, and the configuration as its driver reads it."""
    command = shlex.split(request.entrypoint)
    return command[:3], load(ROOT / command[3], command[4:])


def test_a_fine_tuning_finds_its_start_and_its_examples_where_the_submitter_is(here: Path) -> None:
    path, overrides = ROOT / "jobs" / "configs" / "finetune-laptop.yaml", ["model.preset=laptop"]
    config = tuning.load(path, overrides)
    request = plan(config, path, overrides, "finetune", ROOT, True)
    command = shlex.split(request.entrypoint)
    assert command[1] == "jobs/finetune.py"
    found = tuning.load(ROOT / command[3], command[4:])
    assert found.finetune is not None
    assert found.finetune.start == f"{here}/runs/laptop"
    assert found.corpus.sources == [f"{here}/data/languages/train.jsonl"]
    with pytest.raises(ConfigError, match=r"finetune.start=runs/laptop.*: a relative folder lies"):
        plan(config, path, overrides, "finetune", ROOT, False)


def test_folders_are_meant_where_the_submitter_is_when_the_cluster_is_there_too(here: Path) -> None:
    command, config = received(ask(True, "pretrain", "train.steps=50"))
    assert command == [sys.executable, "jobs/pretrain.py", "--config"]
    assert config.run.directory == f"{here}/runs"
    assert config.corpus.directory == f"{here}/data/sea"
    assert config.train.steps == 50
    evaluations = "corpus.evaluation_files=[asked.txt]"
    _, config = received(ask(True, "prepare", "corpus.directory=s3://bucket/sea", evaluations))
    assert config.corpus.evaluation_files == [f"{here}/asked.txt"]
    assert config.corpus.directory == "s3://bucket/sea"
    assert config.corpus.sources == [f"{here}/jobs/corpora/sea", "python-reference"]


def test_folders_that_would_vanish_with_the_job_are_refused_on_other_machines() -> None:
    with pytest.raises(
        ConfigError, match=r"corpus\.directory=data/sea, run\.directory=runs: .*s3://"
    ):
        ask(False, "pretrain")
    places = ("corpus.directory=s3://bucket/sea", "run.directory=/shared/runs")
    command, config = received(ask(False, "pretrain", *places))
    assert command[0] == "python", "that of the cluster"
    assert config.run.directory == "/shared/runs"


def test_texts_go_along_with_a_preparation_on_other_machines_and_with_nothing_else() -> None:
    place = "corpus.directory=s3://bucket/sea"
    asked = ask(False, "prepare", place)
    assert asked.excludes == []
    assert asked.files["jobs/corpora/sea"] == ROOT / "jobs" / "corpora" / "sea"
    assert ask(False, "pretrain", place, "run.directory=/shared").excludes == ["jobs/corpora"]
    asked = ask(
        False, "prepare", place, "corpus.evaluation_files=[README.md, s3://bucket/asked.txt]"
    )
    assert asked.files["README.md"] == ROOT / "README.md"
    with pytest.raises(ConfigError, match=r"corpus\.sources: \.\./texts is nothing below"):
        ask(False, "prepare", place, "corpus.sources=[../texts]")


def test_a_configuration_from_elsewhere_goes_along(here: Path) -> None:
    (here / "mine.yaml").write_text(LAPTOP.read_text())
    asked = ask(True, "pretrain", path=here / "mine.yaml")
    assert "--config mine.yaml " in asked.entrypoint
    assert asked.files == {"mine.yaml": here / "mine.yaml"}


def test_a_sweep_goes_along_with_what_it_is_laid_over(here: Path) -> None:
    above = "base: laptop.yaml\nsweep: {space: {train.steps: [50, 60]}, search: grid}"
    (here / "sweep.yaml").write_text(above)
    (here / "laptop.yaml").write_text(LAPTOP.read_text())
    config = read_config(here / "sweep.yaml", [], "sweep")
    asked = plan(config, here / "sweep.yaml", [], "sweep", ROOT, True)
    assert asked.entrypoint.split()[1:4] == ["jobs/sweep.py", "--config", "sweep.yaml"]
    assert f'run.directory="{here}/runs"' in shlex.split(asked.entrypoint)
    assert asked.files == {name: here / name for name in ("sweep.yaml", "laptop.yaml")}
    with pytest.raises(ConfigError, match=r"run\.directory=runs: .*s3://"):
        plan(config, here / "sweep.yaml", [], "sweep", ROOT, False)


def test_a_secret_does_not_get_into_the_list_of_jobs() -> None:
    with pytest.raises(ConfigError, match=r"override tracking\.uri: there is a secret") as refused:
        ask(True, "pretrain", "tracking.uri=http://me:hunter22@mlflow:5000")
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("job", ["pretrain", "prepare", "sweep"])
def test_a_job_refuses_folders_that_would_vanish_with_it(job: str) -> None:
    config = LAPTOP.with_name("sweep-laptop.yaml") if job == "sweep" else LAPTOP
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", "train.steps=50", "--config", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("panthalassa: corpus.directory=data/sea")
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_the_repository_is_refused(here: Path, ray_cluster: str) -> None:
    with pytest.raises(ConfigError, match=r"has no jobs/ and platform/panthalassa/.*--working-dir"):
        submit(connect(ray_cluster), LAPTOP, [], directory=here)


def test_no_cluster_is_named_with_its_address(here: Path) -> None:
    with pytest.raises(PanthalassaError, match=r"no cluster at http://127\.0\.0\.1:1: .*ray start"):
        connect("http://127.0.0.1:1")


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a web server that has nothing to do with Ray."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_server_is_not_taken_for_a_cluster(here: Path, stranger: str) -> None:
    with pytest.raises(PanthalassaError, match=r"no cluster at .* no dashboard of Ray"):
        connect(stranger)


def test_a_cluster_without_jobs_says_so(here: Path, ray_cluster: str) -> None:
    said = CliRunner().invoke(app, ["jobs", "status", "--address", ray_cluster])
    assert said.output == f"no jobs        at {ray_cluster}\n"


def test_another_ray_is_named_with_both_versions(
    here: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.59.0")
    with pytest.raises(PanthalassaError, match=f"runs Ray {real}, and this machine Ray 2.59.0"):
        connect(ray_cluster)


def test_more_than_ray_takes_is_refused_with_what_is_large(here: Path, ray_cluster: str) -> None:
    for name in ("platform/panthalassa", "jobs/images"):
        (here / name).mkdir(parents=True)
    (here / "jobs" / "images" / "noise").write_bytes(os.urandom(101 << 20))
    with pytest.raises(
        PanthalassaError, match=r"than Ray takes \(100 MiB, packed\): jobs/images 106 MB"
    ):
        submit(connect(ray_cluster), LAPTOP, [], directory=here)
