"""What a run asks an autoscaler for: it waits where there is no room, holds what there is, and ends with
the process that asked."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from nodes import CPUS, cluster_of, known
from ray.autoscaler.v2.sdk import get_cluster_status

from panthalassa.config import Cluster
from panthalassa.stream.reader import READ_CPUS

ASKING = """
import sys
from dataclasses import replace

import ray
from panthalassa.config import Cluster
from panthalassa.train.demand import Demand
from panthalassa.train.placement import survey

ray.init(address=sys.argv[1], log_to_driver=False)
for line in sys.stdin:
    found = ""
    match line.split():
        case ["run", cluster, tp_size]:
            demand = Demand(Cluster.model_validate_json(cluster), int(tp_size))
        case ["ask", size]:
            found = demand.ask(survey(), int(size))
        case ["ask-unknown", size]:
            found = demand.ask([replace(node, scaled=False) for node in survey()], int(size))
        case ["held"]:
            found = " ".join(demand.held())
        case ["withdraw"]:
            demand.withdraw()
    print(f"answer: {found}", flush=True)
"""


@contextmanager
def asking(address: str) -> Iterator[tuple[Callable[[str], str], subprocess.Popen[str]]]:
    """A driver of its own, and its answer to a line."""
    command = [sys.executable, "-c", ASKING, address]
    driver = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def answer(line: str) -> str:
        assert driver.stdin
        assert driver.stdout
        driver.stdin.write(f"{line}\n")
        while not (said := driver.stdout.readline()).startswith("answer: "):
            assert said, "the driver has ended"  # else it is Ray that says something
        return said.removeprefix("answer: ").strip()

    with driver:
        try:
            yield answer, driver
        finally:
            driver.kill()


def waiting(address: str) -> list[dict[str, float]]:
    """The bundles that the cluster's autoscaler is told to find room for."""
    demands = get_cluster_status(address).resource_demands.placement_group_demand
    return [
        bundle.bundle
        for demand in demands
        for bundle in demand.bundles_by_count
        for _ in range(bundle.count)
    ]


def until(seen: Callable[[], Any], expected: Any) -> None:
    deadline = time.monotonic() + 30
    while (found := seen()) != expected:
        assert time.monotonic() < deadline, f"{found}, not {expected}"
        time.sleep(0.1)


@pytest.mark.ray
def test_room_is_waited_for_and_held_and_gone_with_the_driver() -> None:
    group = {"CPU": 2 * CPUS}
    pairs = f"run {Cluster(workers=6, min_workers=4, cpus_per_worker=CPUS).model_dump_json()} 2"
    single = f"run {Cluster(workers=6, cpus_per_worker=1.0).model_dump_json()} 1"
    with cluster_of(2, num_cpus=0, **known("head", "headgroup")) as (nodes, [first]):
        address = nodes.address
        with asking(address) as (answer, driver):
            answer(pairs)
            assert answer("ask-unknown 0") == "False", "no autoscaler knows these nodes"
            assert waiting(address) == []
            assert answer("ask 0") == "True"
            until(lambda: answer("held"), f"{first.node_id} {first.node_id}")
            assert waiting(address) == [group] * 2, "the rest has room, the least has not"
            assert answer("ask 0") == "False", "it is asked already"
            assert answer("held") == "", "others may have it meanwhile"
            assert waiting(address) == [group] * 2
            second = nodes.add(2)
            both = sorted([first.node_id, second.node_id] * 2)
            until(lambda: sorted(answer("held").split()), both)
            assert waiting(address) == []
            nodes.kill(second)
            until(lambda: waiting(address), [group])
            driver.kill()
            until(lambda: waiting(address), [])

        with asking(address) as (answer, _):
            answer(pairs)
            assert answer("ask 2") == "True"
            time.sleep(1)
            assert answer("held") == "", "what is free beside running ranks is for reading"
            assert waiting(address) == [group] * 2
            third = nodes.add(2)
            until(lambda: answer("held"), f"{third.node_id} {third.node_id}")
            assert waiting(address) == [group]
            answer("withdraw")
            assert answer("held") == ""
            assert waiting(address) == []

            answer(single)
            answer("ask 0")
            every = sorted([first.node_id, third.node_id] * 3)
            until(lambda: sorted(answer("held").split()), every)
            answer("ask 0")
            assert waiting(address) == [{"CPU": READ_CPUS}], "only reading has no room"
            nodes.add(0)
            until(lambda: waiting(address), [])
            answer("ask 0")
            assert sorted(answer("held").split()) == every
