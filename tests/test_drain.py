"""A node that has to go waits for what runs there, and says when that takes too long."""

import os
import subprocess
import sys
from typing import Any

import pytest
from nodes import cluster_of, known

from panthalassa.drain import leave
from panthalassa.errors import PanthalassaError

STAYS = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
class Rank:
    def here(self):
        return True

rank = Rank.options(label_selector={"ray.io/node-id": sys.argv[2]}).remote()
ray.get(rank.here.remote())
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.mark.ray
def test_a_node_is_drained_and_leaves_when_nothing_runs_there_any_more() -> None:
    with cluster_of() as (nodes, _):
        node = nodes.add(1, **known("pod-1", "ranks"))
        command = [sys.executable, "-c", STAYS, nodes.address, node.node_id]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as rank:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "there\n"
            with pytest.raises(PanthalassaError, match="may still run"):  # Ray's account lags
                leave(nodes.address, "pod-1", seconds=4)
            late = drain(RAY_ADDRESS=nodes.address, RAY_CLOUD_INSTANCE_ID="pod-1", seconds=4)
            assert late.returncode == 1
            assert late.stderr == "something may still run on pod-1 after 4 s\n"
            rank.communicate("\n", timeout=60)
        done = drain(RAY_ADDRESS=nodes.address, RAY_CLOUD_INSTANCE_ID="pod-1", seconds=60)
        assert (done.returncode, done.stderr) == (0, "")
        gone = drain(RAY_ADDRESS=nodes.address, RAY_CLOUD_INSTANCE_ID="pod-7", seconds=60)
        assert (gone.returncode, gone.stderr) == (0, ""), "a node that Ray does not know has left"


def test_outside_of_a_pod_it_says_what_is_missing() -> None:
    done = drain(RAY_ADDRESS="127.0.0.1:1", seconds=1)
    assert "not set: RAY_CLOUD_INSTANCE_ID, which KubeRay sets" in done.stderr
    assert done.returncode == 1


def drain(seconds: int, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean: dict[str, Any] = {k: v for k, v in os.environ.items() if not k.startswith("RAY_CLOUD")}
    return subprocess.run(
        [sys.executable, "-m", "panthalassa.drain", "--seconds", str(seconds)],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
