"""A run gets nodes from Ray's own autoscaler, and leaves none behind."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from panthalassa.config import Config

SCENARIO = Path(__file__).parents[1] / "scaled.py"
APART = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def test_a_run_asks_for_nodes_outlives_lost_and_stuck_ones_and_gives_back_the_idle(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    """See tests/scaled.py, which tells the story."""
    try:
        tried = subprocess.run([*APART, "ip", "link", "set", "lo", "up"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if tried.returncode:
        pytest.skip(f"no network of its own can be made here: {tried.stderr.decode().strip()}")
    (tmp_path / "config.yaml").write_text(configure(tmp_path).dump())
    done = subprocess.run(
        [*APART, sys.executable, str(SCENARIO), str(tmp_path / "config.yaml"), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=420,
    )
    log = tmp_path / "autoscaler.log"
    scaled = log.read_text()[-5000:] if log.exists() else ""
    assert done.returncode == 0, f"{done.stdout}\n{scaled}"
    assert len(done.stdout.splitlines()) >= 4, done.stdout
