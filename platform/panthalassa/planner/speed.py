"""From counts to seconds: a roofline with a few shares of what the hardware could do.

In come `Counts`, a `Cluster` and `Factors`; out comes `Speed`. Kernels of a stream run one after
the other, so products, attention and elementwise work add up, each at its own roof. What the
computation waits for (tensor parallelism) adds up, too. What FSDP moves beside the computation
costs what does not fit beside it, and a share of what does, because both want the same memory and
cores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from panthalassa.errors import ConfigError
from panthalassa.planner.counts import Collective, Counts
from panthalassa.planner.hardware import Cluster


@dataclass(frozen=True)
class Factors:
    """Shares of the data sheets that training reaches, and what the data sheets do not tell."""

    matmul: Mapping[str, float]
    """Of the peak, by generation of GPUs, in large matrix products."""
    attention: Mapping[str, float]
    """Of the peak, by generation, in attention kernels."""
    memory: float
    """Of the memory's bandwidth, in elementwise kernels."""
    link: float
    """Of the bandwidth inside a node, in collectives."""
    network: float
    """Of the bandwidth between nodes, in collectives."""
    contention: float
    """Of the time of communication that is hidden beside computation, what computation loses to
    it."""
    hop_seconds: float
    """Latency of a collective for each node that its ring passes."""
    pass_seconds: float
    """For each pass through a block, and each micro-batch: gaps between kernels."""
    step_seconds: float
    """For each optimizer step."""
    straggling: float
    """Share of the work that is added with each doubling of the nodes, because all wait for the
    slowest."""
    spread: float
    """ln of the ratio inside which nine of ten published runs lie, when their family is left
    out."""


@dataclass(frozen=True)
class Part:
    """A share of a step."""

    seconds: float
    bound: str
    """What bounds it."""


@dataclass(frozen=True)
class Speed:
    """What a step takes, and what that means."""

    step_seconds: float
    parts: Mapping[str, Part]
    """They add up to the step."""
    tokens_per_second_per_gpu: float
    low: float
    high: float
    """Tokens/s/GPU within which nine of ten published runs would have lain."""
    mfu: float
    """Share of the peak that trains, by `model_flops`."""
    hfu: float
    """Share of the peak with what is computed again."""

    @property
    def bound(self) -> str:
        """What bounds the largest part."""
        return max(self.parts.values(), key=lambda part: part.seconds).bound


def speed(counts: Counts, cluster: Cluster, factors: Factors) -> Speed:
    """The step of `counts` on `cluster`.

    Raises ConfigError when the factors know nothing of this generation of GPUs.
    """
    gpu = cluster.gpu
    if gpu.generation not in factors.matmul:
        raise ConfigError(
            f"{gpu.name}: no factors for its generation {gpu.generation!r}; there are "
            f"{', '.join(factors.matmul)}. Measure a run on it, and fit them to that."
        )
    peak = gpu.peak * gpu.clock
    compute = {
        "matrix products": counts.matmul_flops / (peak * factors.matmul[gpu.generation]),
        "attention": counts.attention_flops
        / (peak * factors.attention[gpu.generation] * counts.attention_kernel),
        "elementwise": counts.traffic / (gpu.bandwidth * factors.memory),
        "kernel gaps": counts.passes * factors.pass_seconds,
    }
    beside = sum(duration(one, cluster, factors) for one in counts.collectives if not one.waits)
    waited = sum(duration(one, cluster, factors) for one in counts.collectives if one.waits)
    room = sum(compute.values())
    exposed = max(beside - room, 0.0) + factors.contention * min(beside, room)
    work = {**compute, "waited communication": waited, "exposed communication": exposed}
    busy = sum(work.values())
    parts = {
        **work,
        "pipeline bubble": counts.bubble * busy,
        "stragglers": factors.straggling * math.log2(cluster.nodes) * busy,
        "optimizer": counts.optimizer_traffic / (gpu.bandwidth * factors.memory),
        "step": factors.step_seconds,
    }
    total = sum(parts.values())
    bounds = _bounds(counts, cluster, factors)
    rate = counts.tokens / total
    ratio = math.exp(factors.spread)
    return Speed(
        step_seconds=total,
        parts={name: Part(value, bounds.get(name, name)) for name, value in parts.items()},
        tokens_per_second_per_gpu=rate,
        low=rate / ratio,
        high=rate * ratio,
        mfu=counts.model_flops / total / gpu.peak,
        hfu=counts.hardware_flops / total / gpu.peak,
    )


def duration(one: Collective, cluster: Cluster, factors: Factors) -> float:
    """Seconds of a collective by itself: a ring through every rank (bytes), and through every node
    (hops).

    A ring that leaves the node goes over as many network cards as the group has ranks there.
    """
    nodes = -(-one.ranks // one.ranks_per_node)
    rate = cluster.gpu.link * factors.link
    if nodes > 1:
        rate = min(rate, one.ranks_per_node * cluster.network * factors.network)
    times = {"all_reduce": 2.0, "send": one.ranks / (one.ranks - 1)}.get(one.kind, 1.0)
    hops = (nodes if nodes > 1 else 0) + 1
    moved = times * one.bytes * (one.ranks - 1) / one.ranks
    return moved / rate + one.calls * hops * factors.hop_seconds


def _bounds(counts: Counts, cluster: Cluster, factors: Factors) -> dict[str, str]:
    def slowest(waits: bool) -> str:
        found = [one for one in counts.collectives if one.waits is waits]
        if not found:
            return "nothing"
        one = max(found, key=lambda one: duration(one, cluster, factors))
        if one.ranks <= one.ranks_per_node:
            return "links inside the node"
        return "network between nodes"

    return {
        "matrix products": "arithmetic",
        "attention": "arithmetic",
        "elementwise": "memory bandwidth",
        "kernel gaps": "latency",
        "waited communication": slowest(True),
        "exposed communication": slowest(False),
        "pipeline bubble": "pipeline",
        "stragglers": "slowest rank",
        "optimizer": "memory bandwidth",
        "step": "latency",
    }
