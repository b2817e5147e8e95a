"""Every feasible layout is one that the configuration, the mesh and the step accept."""

from typing import Any

import pytest
from ranks import tiny

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.planner.layout import Workload, feasible
from panthalassa.stream.partition import Partition

FLAGSHIP = Workload(Model(preset="panthalassa-12b"), 4096, 2048)  # type: ignore[call-arg]

UNEVEN = FLAGSHIP.model.model_copy(
    update={"vision": FLAGSHIP.model.vision.model_copy(update={"heads": 15})}  # type: ignore[union-attr]
)


@pytest.mark.parametrize(("gpus", "gpus_per_node"), [(1, 8), (4, 8), (8, 8), (24, 8), (6, 2)])
def test_every_layout_is_a_configuration_that_loads(gpus: int, gpus_per_node: int) -> None:
    config = tiny("train.global_batch=24")
    layouts = feasible(Workload.of(config), gpus, gpus_per_node)
    assert layouts
    for layout in layouts:
        accepted = build(config.model_dump(), layout.overrides(), "layout", Config)
        size, partition = accepted.train.micro_batch, Partition(24, layout.dp, 0)
        assert layout.micro_batches(24) == partition.micro_batches(size)
        assert min(gpus, gpus_per_node) % layout.tp == 0
        assert layout.shards * layout.replicas * layout.tp == gpus


def test_the_flagship_has_every_tensor_parallel_size_and_copies_of_whole_nodes() -> None:
    layouts = feasible(FLAGSHIP, 512, 8)
    assert {layout.tp for layout in layouts} == {1, 2, 4, 8}
    assert max(layout.micro_batch for layout in layouts if layout.tp == 8) == 32
    assert all(layout.shards * layout.tp >= 8 and layout.shards > 1 for layout in layouts)
    assert {layout.replicas for layout in layouts if layout.tp == 1} == {2**n for n in range(7)}


@pytest.mark.parametrize(
    ("gpus", "gpus_per_node", "change", "words"),
    [
        (0, 8, {}, "at least one GPU"),
        (12, 8, {}, "take 8 or 16"),
        (512, 8, {"global_batch": 16}, "share global_batch=16"),
        (8, 8, {"sequence_length": 4095, "global_batch": 2}, "not divisible by parallel.tp_size"),
        (8, 8, {"model": UNEVEN, "global_batch": 1}, "model.vision.heads=15 is not divisible"),
    ],
)
def test_what_is_no_layout_says_why(
    gpus: int, gpus_per_node: int, change: dict[str, Any], words: str
) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match=words):
        feasible(replace(FLAGSHIP, **change), gpus, gpus_per_node)
