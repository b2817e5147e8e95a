"""What is told of a node is there on this one."""

import os

import psutil

from panthalassa.tracking import node


def test_a_node_tells_what_it_is_and_how_busy() -> None:
    assert node.hardware().startswith(f"{os.cpu_count()} x ")
    total = psutil.virtual_memory().total
    assert f"{total / 1e9:.0f} GB" in node.hardware()
    node.load()
    until = psutil.cpu_times().user + 0.2
    while psutil.cpu_times().user < until:  # be busy
        sum(range(10_000))
    load = node.load()
    assert 0 < load["cpu_utilization_percentage"] <= 100
    assert 0 < load["system_memory_usage_megabytes"] * 1e6 < total
    assert 0 < load["system_memory_usage_percentage"] < 100
