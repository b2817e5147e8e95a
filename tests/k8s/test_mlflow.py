"""The MLflow server of the manifests, started as its container would be, asks who comes."""

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import environment, pods, rendered
from s3 import free_port

PATIENCE = 120
SECRET = {"username": "trainer", "password": "correct horse battery", "forms": "0123456789abcdef"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Its address. Databases are files here; the password is in none."""
    (pod,) = (p for p in pods(rendered("overlays/dev")) if p["metadata"]["name"] == "mlflow")
    container, port = pod["spec"]["containers"][0], free_port()
    ini = tmp_path / "basic_auth.ini"
    ini.write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{tmp_path}/users.db\n"
    )
    secret = SECRET | {"store": f"sqlite:///{tmp_path}/runs.db"}
    variables = {
        name: entry["value"]
        if "value" in entry
        else secret[entry["valueFrom"]["secretKeyRef"]["key"]]
        for name, entry in environment(container).items()
    }
    there = {"0.0.0.0": "127.0.0.1", "5000": str(port), "2": "1"}  # one worker starts sooner
    assert container["command"][0] == "mlflow"
    command = [there.get(word, word) for word in container["command"][1:]]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=tmp_path,
            env=os.environ
            | variables
            | {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address, until = f"http://localhost:{port}", time.monotonic() + PATIENCE
    try:
        while _status(f"{address}/health") != 200:
            told = (tmp_path / "log").read_text()
            assert process.poll() is None, told
            assert time.monotonic() < until, told
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_mlflow_answers_those_who_have_the_password_and_come_by_its_name(server: str) -> None:
    runs = f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _status(runs) == 401
    assert _status(runs, "wrong") == 401
    assert _status(runs, SECRET["password"]) == 200
    assert _status(runs, SECRET["password"], host="mlflow:5000") == 200, "as pods call it"
    assert _status(runs, SECRET["password"], host="evil.example") == 403


def _status(url: str, password: str | None = None, host: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    if password:
        user = base64.b64encode(f"{SECRET['username']}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {user}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
