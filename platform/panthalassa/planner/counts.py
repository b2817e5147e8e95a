"""What one rank does in one optimizer step, in FLOPs and bytes, counted from a model's shape and
its layout.

In come a `Shape` and an `Arrangement`; out comes `Counts`, which `speed` turns into seconds.
Nothing here knows how fast anything is. A trace of the real model can fill `Counts` as well; what
is counted on paper serves for models that others trained, of which only the shape is known.

Elementwise work (norms, residuals, rotary positions, activations, softmax) is counted by the bytes
that its kernels read and write. Eager RMSNorm, rotation and SwiGLU are several kernels each,
compiled ones one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from panthalassa.config_model import Model, Vision
from panthalassa.errors import ConfigError
from panthalassa.model.flops import flops_per_image, projector_parameters, tower_parameters

SHAPES = Path(__file__).with_name("shapes.yaml")

Recompute = Literal["none", "attention", "alternate", "full"]
"""What the backward pass computes again: nothing (or elementwise work only), the attention between
the projections (Korthikanti et al. 2022), every second matrix product, or each block."""


KERNELS = {"causal": 1.0, "triton": 0.6, "masked": 0.6, "unfused": 1.0}
"""Speed beside FlashAttention-2 on the same GPU. Dao 2023 (arXiv:2307.08691, section 4.1) has it
1.3 to 2.5 times as fast as the first version in Triton, and 1.7 to 3 times as fast as that
version's CUDA kernels, which the kernels for any mask resemble. Where scores lie in memory, their
traffic is counted instead."""


@dataclass(frozen=True)
class Collective:
    """All calls of one kind in a step."""

    kind: Literal["all_gather", "reduce_scatter", "all_reduce", "send"]
    bytes: float
    """Of the whole tensors, as they are when gathered, over all calls."""
    calls: float
    ranks: int
    """In the group."""
    ranks_per_node: int
    """How many of them share a node."""
    waits: bool
    """Whether the next computation needs it (tensor parallelism), or goes on beside it (FSDP)."""


@dataclass(frozen=True)
class Counts:
    """One rank, one optimizer step."""

    tokens: float
    """Of the global batch, divided by the GPUs."""
    model_flops: float
    """By the convention of `model.flops.flops_per_token`, for these tokens: what the MFU counts."""
    hardware_flops: float
    """The same with what is computed again: what the HFU counts."""
    matmul_flops: float
    """Executed in matrix products with weights."""
    attention_flops: float
    """Executed between queries, keys and values; half where the kernel skips what is masked."""
    attention_kernel: float
    """Its speed beside FlashAttention-2."""
    traffic: float
    """Bytes that elementwise kernels read and write."""
    optimizer_traffic: float
    """Bytes that the optimizer reads and writes."""
    passes: float
    """Times that a block is run forward or backward."""
    micro_batches: int
    collectives: tuple[Collective, ...] = ()
    bubble: float = 0.0
    """Idle share on top of the work: (stages - 1) / micro-batches in a pipeline, over its
    interleaving."""


@dataclass(frozen=True)
class Shape:
    """A decoder, as `config_model.Model` has it, or one of others'."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    kv_heads: int
    ffn: int
    head_size: int
    tied: bool
    gated: bool = False
    """SwiGLU: three matrices instead of two; such models have RMSNorm, the others LayerNorm."""
    rotary: bool = False
    positions: int = 0
    """Rows of a table of learned positions."""
    vision: Vision | None = None
    """Its tower, which a projector follows."""

    @property
    def width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def block(self) -> int:
        """Parameters in the matrices of a block."""
        attention = self.hidden * (2 * self.width + 2 * self.kv_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def decoder(self) -> int:
        """Parameters beside tower and projector, without norms and biases."""
        embeddings = (1 if self.tied else 2) * self.vocabulary + self.positions
        return self.layers * self.block + embeddings * self.hidden

    @property
    def parameters(self) -> int:
        """All but the decoder's norms and biases."""
        if self.vision is None:
            return self.decoder
        projector = projector_parameters(self.vision, self.hidden)
        return self.decoder + tower_parameters(self.vision) + projector

    @property
    def tower(self) -> "Shape | None":
        """A transformer whose samples are images and whose tokens are patches."""
        if (vision := self.vision) is None:
            return None
        return Shape(
            layers=vision.layers,
            hidden=vision.hidden_size,
            heads=vision.heads,
            vocabulary=0,
            kv_heads=vision.heads,
            ffn=vision.ffn_size,
            head_size=vision.hidden_size // vision.heads,
            tied=True,
        )

    @classmethod
    def of(cls, model: Model) -> "Shape":
        """That of a configuration."""
        return cls(
            layers=model.layers,
            hidden=model.hidden_size,
            heads=model.heads,
            vocabulary=model.vocabulary_size,
            kv_heads=model.kv_heads,
            ffn=model.ffn_size,
            head_size=model.head_size,
            tied=model.tied_embeddings,
            gated=True,
            rotary=True,
            vision=model.vision,
        )


@cache
def _shapes() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SHAPES.read_text())
    return found


def shape(name: str) -> Shape:
    """A published one of shapes.yaml. Raises ConfigError for a name that is not there."""
    if name not in _shapes():
        raise ConfigError(f"no published shape {name!r}; there are {', '.join(_shapes())}")
    data = _shapes()[name]
    defaults = {
        "kv_heads": data["heads"],
        "head_size": data["hidden"] // data["heads"],
        "ffn": 4 * data["hidden"],
    }
    return Shape(**{**defaults, **data})


@dataclass(frozen=True)
class Arrangement:
    """How a model was laid over GPUs, and how it was implemented."""

    gpus: int
    gpus_per_node: int
    sequence: int
    """Tokens in a sample."""
    global_batch: int
    """Samples in a step."""
    micro_batch: int
    tp: int = 1
    pp: int = 1
    interleaving: int = 1
    """Chunks of layers that a pipeline stage holds."""
    replicas: int = 1
    """Copies that are sharded each for itself (HSDP)."""
    sharding: Literal["full", "grads", "none"] = "full"
    """FSDP: weights gathered for each pass, or kept from forward to backward; or plain data
    parallelism with one exchange of gradients at the end."""
    keep_gathered: bool = False
    """One gathering and one reduction a step, not one each micro-batch."""
    one_group: bool = False
    """All weights are one FSDP group: nothing is computed while they are gathered or reduced."""
    reduce_bytes: int = 4
    """Bytes of a gradient on its way."""
    recompute: Recompute = "none"
    head_again: bool = False
    """The loss is computed in pieces, whose logits the backward pass computes again."""
    fused: bool = False
    """Elementwise work is compiled."""
    attention: Literal["causal", "triton", "masked", "unfused"] = "causal"
    """FlashAttention-2, which skips what causality masks; its first version in Triton, which does
    so too; a kernel that computes all of an arbitrary mask; or scores that lie in memory."""
    images: float = 0.0
    """In a sample, in the mean."""
    most_images: float = 0.0
    """In all samples of the rank that has most of them, for which the others wait."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be laid so."""
        if self.gpus % (self.tp * self.pp) or self.dp % self.replicas:
            raise ConfigError(
                f"{self.gpus} GPUs can not be laid as tp={self.tp} x pp={self.pp} x "
                f"replicas={self.replicas}: their product has to divide the GPUs"
            )
        if min(self.sequence, self.global_batch, self.micro_batch) < 1:
            raise ConfigError(
                f"sequence={self.sequence}, global_batch={self.global_batch}, "
                f"micro_batch={self.micro_batch}: each is at least 1"
            )

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tp * self.pp)


def count(model: Shape, laid: Arrangement) -> Counts:
    """The counts of one rank; with a pipeline, of a rank that has an equal share of layers and
    head."""
    samples = laid.global_batch / laid.dp
    micro_batches = -(-laid.global_batch // (laid.dp * laid.micro_batch))
    slices = laid.tp * laid.pp
    processed = samples * laid.sequence  # tokens that pass through this rank
    again = {"none": 0.0, "attention": 0.0, "alternate": 0.5, "full": 1.0}[laid.recompute]
    again_attention = {"none": 0.0, "attention": 1.0, "alternate": 0.0, "full": 1.0}[laid.recompute]

    again_head = 1.0 if laid.head_again else 0.0
    blocks, head = 2.0 * model.layers * model.block, 2.0 * model.hidden * model.vocabulary
    recomputed = again * blocks + again_head * head
    mixing = 4.0 * model.layers * model.width * laid.sequence  # forward, in full
    executed = (0.5 if laid.attention in ("causal", "triton") else 1.0) * mixing
    backward = 2.0 if laid.attention == "unfused" else 2.5  # flash kernels compute scores again
    model_flops = 6.0 * model.decoder + 3 * mixing
    found = Counts(
        tokens=processed / slices,
        model_flops=model_flops * processed / slices,
        hardware_flops=(model_flops + recomputed + again_attention * mixing) * processed / slices,
        matmul_flops=(3 * (blocks + head) + recomputed) * processed / slices,
        attention_flops=(1 + backward + again_attention) * executed * processed / slices,
        attention_kernel=KERNELS[laid.attention],
        traffic=_traffic(model, laid, again_attention) * processed / slices
        + _copies(model, laid, micro_batches),
        optimizer_traffic=46.0 * model.parameters / slices / _shards(laid),
        passes=(3 + again) * model.layers / laid.pp * micro_batches,
        micro_batches=micro_batches,
        collectives=(
            *_of_weights(model, laid, micro_batches),
            *_of_activations(
                model,
                laid,
                micro_batches,
                3 + again_attention,
                laid.micro_batch * laid.sequence * micro_batches,
            ),
        ),
        bubble=(laid.pp - 1) / (micro_batches * laid.interleaving),
    )
    return _with_tower(found, model, laid, again, again_attention) if model.vision else found


def _with_tower(
    found: Counts, model: Shape, laid: Arrangement, again: float, again_attention: float
) -> Counts:
    """The counts with what tower and projector do besides; that their weights move is in them.

    A micro-batch without images runs one that is black. The products for the patches have no
    gradient of their pixels. Attention among patches is counted as if its kernel were the decoder's.
    """
    vision, tower = model.vision, model.tower
    assert vision
    assert tower
    seen = laid.images * laid.global_batch / laid.dp * vision.tokens / laid.tp
    run = max(laid.most_images, found.micro_batches) * vision.tokens / laid.tp
    blocks, mixing = (
        2.0 * tower.layers * tower.block,
        4.0 * tower.layers * tower.width * vision.tokens,
    )
    patches = 2.0 * 3 * vision.patch_size**2 * tower.hidden
    projector = 2.0 * (tower.hidden + model.hidden) * model.hidden
    recomputed = again * blocks + again_attention * mixing
    needed = flops_per_image(vision, model.hidden) / vision.tokens
    products = 3 * (blocks + projector) + 2 * patches + again * blocks
    sums = _of_activations(tower, laid, found.micro_batches, 3 + again_attention, run * laid.tp)
    return replace(
        found,
        model_flops=found.model_flops + needed * seen,
        hardware_flops=found.hardware_flops + (needed + recomputed) * seen,
        matmul_flops=found.matmul_flops + products * run,
        attention_flops=found.attention_flops + (1 + 2.5 + again_attention) * mixing * run,
        traffic=found.traffic
        + _traffic(tower, replace(laid, sequence=vision.tokens), again_attention) * run,
        passes=found.passes + (3 + again) * tower.layers * found.micro_batches,
        collectives=(*found.collectives, *sums),
    )


def _shards(laid: Arrangement) -> int:
    return 1 if laid.sharding == "none" else laid.dp // laid.replicas


def _traffic(model: Shape, laid: Arrangement, again: float) -> float:
    """Bytes a token, over all layers, in bf16."""
    heads = model.width + model.kv_width
    norm = 4 if laid.fused or not model.gated else 36
    activation = (6 if laid.fused else 10) * model.ffn if model.gated else 4 * model.ffn
    rotation = (8 if laid.fused else 20) * heads if model.rotary else 0
    attention = (4 if laid.fused else 8) * heads  # read, written, and transposed unless compiled
    scores = 10 * model.heads * laid.sequence if laid.attention == "unfused" else 0
    residual = 6
    forward = 2 * (norm + residual) * model.hidden + activation + rotation + attention + scores
    logits = 24.0 * model.vocabulary
    return model.layers * forward * (3 + again) + logits


def _copies(model: Shape, laid: Arrangement, micro_batches: int) -> float:
    """Bytes by which FSDP copies whole weights out of, and whole gradients into, its buffers."""
    if _shards(laid) == 1:
        return 0.0
    gathers, times = _gathers(laid), 1 if laid.keep_gathered else micro_batches
    return (4.0 * gathers + 2 + laid.reduce_bytes) * model.parameters / (laid.tp * laid.pp) * times


def _gathers(laid: Arrangement) -> int:
    """Times that the weights are gathered for a micro-batch, or for a step if they are kept."""
    return 1 if laid.keep_gathered or laid.sharding == "grads" else 2


def _of_weights(model: Shape, laid: Arrangement, micro_batches: int) -> Iterator[Collective]:
    """What FSDP, its copies (HSDP), or plain data parallelism exchange."""
    weights = model.parameters / (laid.tp * laid.pp)
    towers = model.vision.layers if model.vision else 0
    layers, shards = (model.layers + towers) / laid.pp, _shards(laid)
    node = max(1, laid.gpus_per_node // laid.tp)  # data-parallel ranks on a node
    times = 1 if laid.keep_gathered or laid.sharding == "none" else micro_batches
    calls = times * layers
    if shards > 1:
        gathers, near = _gathers(laid), min(shards, node)
        gathered, reduced = 2 * weights * gathers * times, laid.reduce_bytes * weights * times
        yield Collective("all_gather", gathered, gathers * calls, shards, near, laid.one_group)
        yield Collective("reduce_scatter", reduced, calls, shards, near, laid.one_group)
    copies = laid.dp // shards
    if copies > 1:
        summed = laid.reduce_bytes * weights / shards * times
        near = max(1, min(copies, node // shards))
        waits = laid.one_group or laid.sharding == "none"
        yield Collective("all_reduce", summed, calls, copies, near, waits)


def _of_activations(
    model: Shape, laid: Arrangement, micro_batches: int, passes: float, positions: float
) -> Iterator[Collective]:
    """What tensor parallelism sums (a gather and a scatter) of so many positions in a step, and a
    pipeline hands on."""
    moved = 2.0 * positions * model.hidden
    if laid.tp > 1:
        sums, near = 2 * model.layers / laid.pp * passes, min(laid.tp, laid.gpus_per_node)
        yield Collective("all_reduce", moved * sums, sums * micro_batches, laid.tp, near, True)
    if laid.pp > 1:
        sends = 2 * laid.interleaving
        yield Collective("send", moved / laid.tp * sends, sends * micro_batches, 2, 1, True)
