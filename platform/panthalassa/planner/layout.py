"""How a model can be laid over a cluster, and what a rank then is asked to do in a step.

A `Workload` is what decides the mathematics (model, sequence, global batch, precision), a `Layout`
what is left to choose. `feasible` gives every layout that `parallel` and the training step accept;
whether it fits into memory is for `memory` to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from panthalassa.config import Config
from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.planner.hardware import check_filled

TP_SIZES = (1, 2, 4, 8)
CHECKPOINTING: tuple["Checkpointing", ...] = ("none", "selective", "full")

Checkpointing = Literal["none", "selective", "full"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Workload:
    """What a step computes, whatever it is laid over."""

    model: Model
    sequence_length: int
    """Tokens in a sample."""
    global_batch: int
    """Samples in a step, over all ranks."""
    precision: Precision = "bf16"
    loss_chunk: int = 1024
    """Positions whose logits exist at once."""
    image_samples: float = 0.0
    """Share of the samples that have images."""
    images_per_sample: float = 0.0
    """In each of those."""

    @classmethod
    def of(cls, config: Config) -> "Workload":
        """That of a run's configuration."""
        return cls(
            model=config.model,
            sequence_length=config.train.sequence_length,
            global_batch=config.train.global_batch,
            precision=config.parallel.precision,
            loss_chunk=config.train.loss_chunk,
        )


@dataclass(frozen=True, order=True)
class Layout:
    """One way to spread a workload over `gpus` ranks; the names are those of `config.Parallel`."""

    gpus: int
    tp: int
    """Ranks in a tensor-parallel group, all in one node."""
    replicas: int
    """Whole copies of the model (HSDP); 1 shards it over all data-parallel ranks."""
    micro_batch: int
    """Samples that a rank passes through the model at once."""
    activation_checkpointing: Checkpointing
    keep_gathered: bool
    """Weights and gradients stay whole through the micro-batches of a step."""

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // self.tp

    @property
    def shards(self) -> int:
        """Ranks that a copy of the model is sharded over, beside tensor parallelism."""
        return self.dp // self.replicas

    def micro_batches(self, global_batch: int) -> int:
        """Micro-batches in a step, the same on all ranks; the last ones may hold padding."""
        most = -(-global_batch // self.dp)
        return -(-most // self.micro_batch)

    def overrides(self) -> list[str]:
        """The keys of a configuration that ask for this layout."""
        return [
            f"cluster.workers={self.gpus}",
            f"parallel.tp_size={self.tp}",
            f"parallel.replicas={self.replicas}",
            f"parallel.activation_checkpointing={self.activation_checkpointing}",
            f"parallel.keep_gathered={str(self.keep_gathered).lower()}",
            f"train.micro_batch={self.micro_batch}",
        ]


def feasible(workload: Workload, gpus: int, gpus_per_node: int) -> list[Layout]:
    """All layouts for `gpus` GPUs on nodes of `gpus_per_node`, in a fixed order.

    Tensor-parallel groups of 1, 2, 4 or 8 that divide the model and a node; micro-batches of powers
    of two up to a rank's share of the global batch; copies of the model in powers of two, each
    sharded over a node at least, because gathering inside one costs little, and over two ranks at
    least. More data-parallel ranks than samples are no layout: some would never have anything to
    do. Raises ConfigError when there is none, and for numbers that describe no cluster.
    """
    _check_cluster(gpus, gpus_per_node)
    layouts = [
        Layout(gpus, tp, replicas, micro_batch, checkpointing, keep)
        for tp in TP_SIZES
        if not obstacle(workload, gpus, gpus_per_node, tp)
        for replicas in _powers(gpus // max(gpus_per_node, 2 * tp) or 1)
        if (gpus // tp) % replicas == 0
        for micro_batch in _powers(-(-workload.global_batch // (gpus // tp)))
        for checkpointing in CHECKPOINTING
        for keep in (False, True)
    ]
    if not layouts:
        reasons = [obstacle(workload, gpus, gpus_per_node, tp) for tp in TP_SIZES]
        raise ConfigError("\n".join(f"no layout: {reason}" for reason in reasons))
    return layouts


def obstacle(workload: Workload, gpus: int, gpus_per_node: int, tp: int) -> str | None:
    """Why tensor-parallel groups of `tp` are impossible there, or None."""
    model, node = workload.model, min(gpus, gpus_per_node)
    if node % tp:
        return f"tensor-parallel groups of {tp} do not divide the {node} GPUs of a node"
    for key in ("heads", "kv_heads", "ffn_size", "vocabulary_size"):
        if (value := getattr(model, key)) % tp:
            return f"model.{key}={value} is not divisible by parallel.tp_size={tp}"
    if model.vision and model.hidden_size % tp:
        return f"model.hidden_size={model.hidden_size} is not divisible by parallel.tp_size={tp}"
    for key in ("heads", "ffn_size", "tokens") if model.vision else ():
        if (value := getattr(model.vision, key)) % tp:
            return f"model.vision.{key}={value} is not divisible by parallel.tp_size={tp}"
    if workload.sequence_length % tp:
        return (
            f"sequence_length={workload.sequence_length} is not divisible by parallel.tp_size={tp}"
        )
    if gpus // tp > workload.global_batch:
        return (
            f"{gpus // tp} data-parallel ranks share global_batch={workload.global_batch}: "
            "take fewer GPUs, a larger batch, or more tensor parallelism"
        )
    return None


def _check_cluster(gpus: int, gpus_per_node: int) -> None:
    if gpus < 1 or gpus_per_node < 1:
        raise ConfigError(
            f"expected at least one GPU and one a node, found {gpus} GPUs of {gpus_per_node} a node"
        )
    check_filled(gpus, gpus_per_node)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2
