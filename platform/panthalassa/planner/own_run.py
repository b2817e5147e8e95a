"""A run of one's own: its folder comes in, what its hardware was seen to do goes out.

The spool of a run's metrics has the time of each step, and on how many ranks it was. Each layout that
a run was on gives one observation, the median of its steps without waiting for data.
"""

import os
from dataclasses import dataclass, replace
from statistics import median

import torch

from panthalassa.config import Config
from panthalassa.corpus.manifest import MANIFESTS, read_manifest
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.planner import hardware
from panthalassa.planner.hardware import GPU, Cluster
from panthalassa.planner.images import Images, trained_on
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.rank import counted
from panthalassa.planner.refit import Observation, Own, refit
from panthalassa.run_config import kept
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import until
from panthalassa.stream.ledger import later_attempts
from panthalassa.tracking.spool import read

FEWEST = 3
"""Steps of a layout, from which a median is taken."""
WHOLE_NODES = 64
"""GPUs that fill nodes of any usual size."""
Steps = dict[tuple[int, int], list[tuple[float, float | None]]]
"""Seconds and joules of steps, by data-parallel and tensor-parallel ranks."""


@dataclass(frozen=True)
class OwnRun:
    """What a run says of its hardware."""

    gpu: GPU
    fit: Own
    told: str
    """What it was fitted to, for people."""


def learn(run: Storage, config: Config, gpu: str | None) -> OwnRun:
    """Fit the factors to a run, for a plan of `config`.

    gpu: the name of what it was trained on; not needed of a CPU. Raises PanthalassaError for a run
    that has too few steps, or is of another precision than the plan.
    """
    theirs = kept(run)
    if theirs.parallel.precision != config.parallel.precision:
        raise ConfigError(
            f"{run.uri} was trained in {theirs.parallel.precision}, and the plan is for "
            f"{config.parallel.precision}: make parallel.precision the same"
        )
    chip = chip_of(theirs, gpu, run)
    steps = {ranks: found for ranks, found in _steps(run).items() if len(found) >= FEWEST}
    if not steps:
        raise PanthalassaError(
            f"{run.uri} has no layout on which {FEWEST} steps were trained after the first: let it "
            "train for longer"
        )
    workload = images_seen(run, theirs).on(Workload.of(theirs))
    seen = [_observed(theirs, workload, chip, *ranks, found) for ranks, found in steps.items()]
    fit = refit(seen)
    many = sum(map(len, steps.values()))
    determined = ", ".join(fit.determined) or "no factor alone, only what they make together"
    return OwnRun(chip, fit, f"{many} steps of {run.uri}, which determine {determined}")


def place(chip: GPU, gpus: int) -> Cluster:
    """A cluster of them; CPUs, each of which is a rank, are all in one node."""
    if chip.generation == "cpu":
        return Cluster(chip, gpus, gpus, network=chip.link, node_watts=0.0)
    return hardware.cluster(chip, gpus)


def chip_of(config: Config, gpu: str | None, run: Storage) -> GPU:
    """What a run of that configuration was trained on; `gpu` is the name that was given, if any.

    A CPU is measured (1 s). Raises ConfigError when it can not be that, or was not told.
    """
    on_cpu = not config.cluster.gpus_per_worker
    if on_cpu and gpu not in (None, "cpu"):
        raise ConfigError(
            f"{run.uri} was trained on CPUs, which say nothing of {gpu}: leave out --gpu"
        )
    if not on_cpu:
        if gpu is None:
            raise ConfigError(f"name the GPU on which {run.uri} was trained: --gpu a100-80gb, say")
        return hardware.gpu(gpu)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    before = torch.get_num_threads()
    torch.set_num_threads(config.cluster.threads_per_worker)
    try:
        return hardware.cpu(memory / config.cluster.workers)
    finally:
        torch.set_num_threads(before)


def _steps(run: Storage) -> Steps:
    found: Steps = {}
    ranks, first = (1, 1), True
    for record in read(run):
        values = record.values
        if record.kind == "attempt":
            ranks, first = (int(values["dp_size"]), int(values["tp_size"])), True
        elif record.kind == "metrics" and "step_seconds" in values:
            seconds = float(values["step_seconds"]) - float(values["data_seconds"])
            joules = float(values["joules"]) if "joules" in values else None
            if not first:  # in which torch has to compile, and NCCL to connect
                found.setdefault(ranks, []).append((seconds, joules))
            first = False
    return found


def images_seen(run: Storage, config: Config) -> Images:
    """What a run sees in the phase that it is in."""
    attempts = [*later_attempts(run, 0)] if config.model.vision else []
    if not attempts:
        return Images()
    attempt = attempts[-1]
    step = max((record.step for record in read(run)), default=0)
    phase = until(attempt.phases, max(step, attempt.first_step + 1))[-1]
    return trained_on(read_manifest(run.below(MANIFESTS), f"{phase.corpus}.json"), phase)


def _observed(
    config: Config,
    workload: Workload,
    chip: GPU,
    dp: int,
    tp: int,
    steps: list[tuple[float, float | None]],
) -> Observation:
    parallel, cluster = config.parallel, _seen_on(chip, dp * tp)
    layout = Layout(
        gpus=dp * tp,
        tp=tp,
        replicas=parallel.replicas if dp % parallel.replicas == 0 else 1,
        micro_batch=config.train.micro_batch,
        activation_checkpointing=parallel.activation_checkpointing,
        keep_gathered=parallel.keep_gathered,
    )
    return Observation(
        counted(workload, layout, cluster.gpus_per_node, parallel.compile),
        cluster,
        median(seconds for seconds, _ in steps),
        _joules(chip, steps, dp * tp),
    )


def _seen_on(chip: GPU, ranks: int) -> Cluster:
    """Where an attempt was: after a loss, also on nodes of which one is partly used."""
    if chip.generation == "cpu":
        return place(chip, ranks)
    usual = hardware.cluster(chip, WHOLE_NODES)
    return replace(usual, gpus=ranks, gpus_per_node=min(ranks, usual.gpus_per_node))


def _joules(chip: GPU, steps: list[tuple[float, float | None]], ranks: int) -> float | None:
    """Of a GPU in a step; the watts of a CPU, whose meter is the socket's, stay an assumption."""
    known = [joules for _, joules in steps if joules is not None]
    return median(known) / ranks if known and chip.generation != "cpu" else None
