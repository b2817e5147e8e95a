"""GPUs and clusters: what is in the table, and what is refused."""

import pytest

from panthalassa.errors import ConfigError
from panthalassa.model.flops import peak_of
from panthalassa.planner.hardware import cluster, gpu


def test_the_peak_is_that_of_the_mfu():
    assert gpu("A100_80GB").peak == peak_of("NVIDIA A100-SXM4-80GB")
    assert gpu("h100-80gb").peak == peak_of("NVIDIA H100 80GB HBM3")


def test_an_unknown_gpu_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean a100-80gb"):
        gpu("a100-80g")
    with pytest.raises(ConfigError, match="there are a100-80gb, "):
        gpu("zx81")


def test_a_power_limit_slows_the_clock_down():
    assert gpu("h100-80gb").clock == 1.0
    assert 0.8 < gpu("h100-80gb", limit=500).clock < 0.9
    assert gpu("h100-96gb-500w").watts == 500
    with pytest.raises(ConfigError, match="power limit of 900 W is impossible"):
        gpu("h100-80gb", limit=900)


def test_nodes_are_full():
    assert cluster(gpu("a100-80gb"), 512).nodes == 64
    assert cluster(gpu("a100-80gb"), 4).nodes == 1
    assert cluster(gpu("a100-80gb"), 16, kind="a100-400g").network == 6.25e9
    for gpus in (0, -8, 12):
        with pytest.raises(ConfigError, match=f"{gpus} GPUs"):
            cluster(gpu("a100-80gb"), gpus)
    with pytest.raises(ConfigError, match="unknown kind of cluster 'cloud'"):
        cluster(gpu("a100-80gb"), 8, kind="cloud")
