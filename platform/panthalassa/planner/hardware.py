"""GPUs and clusters as data: what a chip could do, and what lies between chips.

In come names; out come frozen records of hardware.yaml, whose sources stand there. The peak is that
of `model.flops`, so that a plan and the MFU of a run mean the same.
"""

import difflib
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from panthalassa.errors import ConfigError
from panthalassa.model.flops import PEAK_BF16, measured_peak

TABLE = Path(__file__).with_name("hardware.yaml")


@dataclass(frozen=True)
class GPU:
    """One accelerator. FLOP/s, bytes, bytes/s in one direction, watts."""

    name: str
    peak: float
    """Dense bf16 FLOP/s of the data sheet."""
    generation: str
    """Which fitted shares of the peak apply to it."""
    memory: float
    bandwidth: float
    """Of its memory."""
    link: float
    """To the other GPUs of its node."""
    tdp: float
    idle: float
    limit: float | None = None
    """The power limit, where the operator set one below `tdp`."""

    @property
    def watts(self) -> float:
        """The most that it may draw."""
        return self.limit or self.tdp

    @property
    def clock(self) -> float:
        """Share of the full clock under its power limit.

        Dynamic power grows with clock x voltage^2, and near the top of the range voltage grows with
        the clock: somewhere between the first and the third power. The square is taken.
        """
        if self.limit is None:
            return 1.0
        return float(((self.watts - self.idle) / (self.tdp - self.idle)) ** 0.5)


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. The network is in bytes/s a GPU, in one direction."""

    gpu: GPU
    gpus: int
    gpus_per_node: int
    network: float
    node_watts: float
    """What a node draws besides its GPUs."""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return found


def tdp() -> dict[str, float]:
    """Watts of each chip of `PEAK_BF16`."""
    return {chip: float(watts) for chip, watts in _table()["tdp"].items()}


def gpu(name: str, limit: float | None = None) -> GPU:
    """The GPU of that name (a100-80gb), under a power limit (W) if one is given.

    Raises ConfigError for one that is not in the table, and for a limit that it can not have.
    """
    known = _table()["gpus"]
    key = name.lower().replace("_", "-")
    if key not in known:
        near = [one for one in known if key and one.startswith(key)]
        near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
        raise ConfigError(f"unknown GPU {name!r}; {hint} {', '.join(known)}")
    data = dict(known[key])
    chip, generation = data.pop("chip"), data.pop("generation")
    # YAML takes 80.0e9 for a text
    numbers = {name: float(value) for name, value in data.items()}
    found = GPU(key, PEAK_BF16[chip], generation, tdp=tdp()[chip], **numbers)
    if limit is None:
        return found
    if not found.idle < limit <= found.tdp:
        raise ConfigError(
            f"a power limit of {limit:g} W is impossible for {key}: it lies between {found.idle:g} "
            f"and {found.tdp:g} W"
        )
    return replace(found, limit=limit)


def cpu(memory: float, watts_per_thread: float = 10.0) -> GPU:
    """This machine's CPU as one accelerator, by torch's threads: its peak and bandwidth are
    measured (1 s).

    memory: bytes that it may take. The watts are an assumption: 280 W over 28 busy threads.
    """
    peak, bandwidth = measured_peak(), _copied()
    watts = watts_per_thread * torch.get_num_threads()
    return GPU("cpu", peak, "cpu", memory, bandwidth, link=bandwidth, tdp=watts, idle=watts / 4)


def _copied(rounds: int = 8) -> float:
    """Bytes/s that a copy of 64 MB reads and writes, at its best."""
    source = torch.zeros(16 << 20)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def check_filled(gpus: int, gpus_per_node: int) -> None:
    """Raise ConfigError when the last of several nodes would be partly filled."""
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise ConfigError(
            f"{gpus} GPUs do not fill nodes of {gpus_per_node}: take "
            f"{gpus // gpus_per_node * gpus_per_node} or {-(-gpus // gpus_per_node) * gpus_per_node}"
        )


def cluster(chip: GPU, gpus: int, network: float | None = None, kind: str | None = None) -> Cluster:
    """That many GPUs in nodes as they are usually built.

    network: bytes/s a GPU between nodes, if it is another; kind: a key of hardware.yaml's clusters.
    Raises ConfigError when there is no GPU, the kind is unknown, or a last node would be partly
    filled.
    """
    known = _table()["clusters"]
    kind = kind or {"ampere": "a100"}.get(chip.generation, "h100")
    if kind not in known:
        raise ConfigError(f"unknown kind of cluster {kind!r}; there are {', '.join(known)}")
    if gpus < 1:
        raise ConfigError(f"{gpus} GPUs: a cluster has at least one")
    usual = known[kind]
    per_node = min(gpus, int(usual["gpus_per_node"]))
    check_filled(gpus, per_node)
    speed = float(usual["network"]) if network is None else network
    return Cluster(chip, gpus, per_node, speed, float(usual["node_watts"]))
