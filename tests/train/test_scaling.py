"""Ray Train's controller can be started before it is known where its ranks go."""

import psutil
import pytest
import ray
from ray.exceptions import RayError

from panthalassa.config import Cluster
from panthalassa.train import board as boards
from panthalassa.train.board import Launch
from panthalassa.train.scaling import UNKNOWN, OnceLaunched, still_there

LONG_ENOUGH_TO_BE_ANSWERED = 3


@ray.remote(num_cpus=0)
def places(scaling: OnceLaunched) -> list[str]:
    assert scaling.num_workers == len(scaling.label_selector)
    return [selector["ray.io/node-id"] for selector in scaling.label_selector]


def test_who_unpickles_a_scaling_configuration_waits_for_its_launch(ray_cluster: str) -> None:
    board = boards.create()
    first, second = (
        places.remote(OnceLaunched(board, number, Cluster(workers=4))) for number in (0, 1)
    )
    ray.get(board.begin.remote(Launch(("a", "a", "b"), 0.0, 1.0)))
    assert ray.get(first) == ["a", "a", "b"]
    assert ray.wait([second], timeout=LONG_ENOUGH_TO_BE_ANSWERED)[0] == []
    ray.get(board.begin.remote(Launch(("b",), 0.0, 1.0)))
    assert ray.get(second) == ["b"]
    ray.kill(board)


def test_a_launch_that_never_comes_ends_with_the_run(ray_cluster: str) -> None:
    board = boards.create()
    waiting = places.remote(OnceLaunched(board, 0, Cluster(workers=4)))
    assert ray.wait([waiting], timeout=LONG_ENOUGH_TO_BE_ANSWERED)[0] == []
    ray.kill(board)
    with pytest.raises(RayError, match="The actor is dead"):
        ray.get(waiting)


def test_before_its_launch_nobody_starts_ranks_by_mistake(ray_cluster: str) -> None:
    board = boards.create()
    scaling = OnceLaunched(board, 0, Cluster(workers=4))
    assert scaling.num_workers == UNKNOWN > ray.cluster_resources()["CPU"]
    ray.kill(board)


def test_controllers_that_have_ended_are_not_taken_for_what_has_their_ids_now(
    ray_cluster: str,
) -> None:
    board = boards.create()
    waiting = places.remote(OnceLaunched(board, 0, Cluster(workers=4)))
    ray.get(board.begin.remote(Launch(("a",), 0.0, 1.0)))
    ray.get(waiting)
    told = {*ray.get(board.controllers.remote())}
    ((pid, created),) = told
    assert still_there([*told, *told]) == [psutil.Process(pid)]
    assert still_there([(pid, created - 1), (1 << 22, created)]) == []
    ray.kill(board)
