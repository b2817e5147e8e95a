"""Ray Train's controller can be started before it is known where its ranks go."""

import pytest
import ray
from ray.exceptions import RayActorError

from panthalassa.config import Cluster
from panthalassa.train import board as boards
from panthalassa.train.board import Launch
from panthalassa.train.scaling import UNKNOWN, OnceLaunched

LONG_ENOUGH_TO_BE_ANSWERED = 3


@ray.remote(num_cpus=0)
class Controller:
    """In place of Ray Train's: it unpickles its configuration before anything else, too."""

    def __init__(self, scaling: OnceLaunched) -> None:
        assert scaling.num_workers == len(scaling.label_selector)
        self._places = [selector["ray.io/node-id"] for selector in scaling.label_selector]

    def places(self) -> list[str]:
        return self._places


def test_who_unpickles_a_scaling_configuration_waits_for_its_launch(ray_cluster: str) -> None:
    board = boards.create()
    controllers = [
        Controller.remote(OnceLaunched(board, number, Cluster(workers=4))) for number in (0, 1)
    ]
    first, second = (controller.places.remote() for controller in controllers)
    ray.get(board.begin.remote(Launch(("a", "a", "b"), 0.0, 1.0)))
    assert ray.get(first) == ["a", "a", "b"]
    assert ray.wait([second], timeout=LONG_ENOUGH_TO_BE_ANSWERED)[0] == []
    ray.get(board.begin.remote(Launch(("b",), 0.0, 1.0)))
    assert ray.get(second) == ["b"]
    assert [ray.get(board.controller.remote(number)) for number in (0, 1)] == controllers
    ray.kill(board)


def test_a_launch_that_never_comes_ends_with_the_run(ray_cluster: str) -> None:
    board = boards.create()
    controller = Controller.remote(OnceLaunched(board, 0, Cluster(workers=4)))
    waiting = controller.places.remote()
    assert ray.wait([waiting], timeout=LONG_ENOUGH_TO_BE_ANSWERED)[0] == []
    ray.kill(board)
    with pytest.raises(RayActorError):
        ray.get(waiting)


def test_before_its_launch_nobody_starts_ranks_by_mistake(ray_cluster: str) -> None:
    board = boards.create()
    scaling = OnceLaunched(board, 0, Cluster(workers=4))
    assert scaling.num_workers == UNKNOWN > ray.cluster_resources()["CPU"]
    ray.kill(board)
