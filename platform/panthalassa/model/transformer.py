"""The network: a Llama-compatible decoder over packed documents, which may hold images (`vision`).

Tokens and the index of the document that each belongs to come in; logits, or the summed loss of
given labels, go out. The layers and their names are those of Llama (Touvron et al. 2023; grouped
queries after Ainslie et al. 2023), so that weights can be exchanged. The model knows nothing of
devices and ranks: `parallel` shards it from outside. There are no buffers, so that it can be built on
the meta device and filled later.

Shapes: `batch` samples of `sequence` positions; `hidden`, `heads`, `kv_heads` and `head` as in
`config_model.Model`. Under tensor parallelism a rank holds a share of the heads and of the feed-forward.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from panthalassa.config_model import Model
from panthalassa.config_values import RopeScaling
from panthalassa.model.vision import Projector, VisionTower, put_in

IGNORED = -100
"""The label of a position that has no target."""

INITIAL_STD = 0.02

Memory = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keeps the keys and values [batch, kv_heads, sequence, head] of new positions, and returns those of
all positions so far: `kv_cache`."""


def rotary_table(
    length: int,
    head_size: int,
    theta: float,
    device: torch.device,
    rope_scaling: RopeScaling | None = None,
) -> Tensor:
    """Cosines and sines of rotary positions (Su et al. 2021, eq. 15): [2, sequence, head] in fp32."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=device).float() / head_size)
    if rope_scaling:
        frequencies = scaled(frequencies, rope_scaling)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def scaled(frequencies: Tensor, rope_scaling: RopeScaling) -> Tensor:
    """Frequencies (radians a position) for longer texts, as in Llama 3.1 (Grattafiori et al. 2024)."""
    turns = rope_scaling.original_length * frequencies / (2 * math.pi)
    low, high = rope_scaling.low_turns, rope_scaling.high_turns
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope_scaling.factor)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys [batch, heads, sequence, head] by their positions."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    turned: Tensor = x * cos + torch.cat((-second, first), dim=-1) * sin
    return turned.type_as(x)


def document_mask(documents: Tensor) -> Tensor:
    """Who may look at whom: earlier positions of the same document.

    documents: [batch, sequence] -> bool [batch, 1, sequence, sequence].
    """
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, None, :, None] == documents[:, None, None, :]) & causal


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, restricted by a mask."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.head_size = config.head_size
        width, kv_width = (n * config.head_size for n in (config.heads, config.kv_heads))
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, table: Tensor, mask: Tensor, memory: Memory | None = None
    ) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, table), rotate(k, table)
        if memory is not None:
            k, v = memory(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and beside a residual path."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, table: Tensor, mask: Tensor, memory: Memory | None = None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, mask, memory=memory)
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class Head(nn.Module):
    """The last norm and the output layer, with the loss computed piece by piece.

    A vocabulary of 256 k makes the logits the largest tensor of the model. So they exist for `chunk`
    positions at a time, and the backward pass computes them again.
    """

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.gather = nn.Identity()  # where sequence parallelism puts the sequence together again
        self.output = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        chunk: int = 1024,
        reduction: Literal["sum", "none"] = "sum",
    ) -> Tensor:
        x = self.gather(self.norm(x))
        if labels is None:
            return self.output(x)  # type: ignore[no-any-return]
        hidden, targets = (torch.split(y.flatten(0, 1), chunk) for y in (x, labels))
        pieces = [(*piece, reduction) for piece in zip(hidden, targets, strict=True)]
        if len(pieces) == 1:
            losses = [self._loss(*pieces[0])]
        else:
            losses = [checkpoint(self._loss, *piece, use_reentrant=False) for piece in pieces]
        if reduction == "none":
            return torch.cat(losses).view_as(labels)
        return torch.stack(losses).sum()

    def _loss(self, x: Tensor, labels: Tensor, reduction: str) -> Tensor:
        logits = self.output(x).float()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)
        return loss.to_local() if isinstance(loss, DTensor) else loss


class Transformer(nn.Module):
    """The decoder. Fresh weights are undefined: fill them from `initial_weight` or a checkpoint."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.vision = self.projector = None
        if config.vision:
            self.vision = VisionTower(config.vision)
            self.projector = Projector(config, config.vision)
            self.split = nn.Identity()  # where sequence parallelism splits the sequence
        self.tie()

    def tie(self) -> None:
        """Share the embedding's weight with the output layer where the configuration says so."""
        if self.config.tied_embeddings:
            self.head.output.weight = self.embedding.weight

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor,
        labels: Tensor | None = None,
        chunk: int = 1024,
        reduction: Literal["sum", "none"] = "sum",
        images: Tensor | None = None,
    ) -> Tensor:
        """Logits [batch, sequence, vocabulary], or the loss (nats) when labels are given: its sum, or
        that of each position [batch, sequence] without a reduction.

        tokens, documents, labels: [batch, sequence]; positions labelled IGNORED do not count.
        images: as in `embed`.
        """
        return self.head(  # type: ignore[no-any-return]
            self.hidden(tokens, documents, images), labels, chunk, reduction
        )

    def hidden(self, tokens: Tensor, documents: Tensor, images: Tensor | None = None) -> Tensor:
        """What the head reads: [batch, sequence, hidden]."""
        config = self.config
        table = rotary_table(
            tokens.shape[1],
            config.head_size,
            config.rope_theta,
            tokens.device,
            config.rope_scaling,
        )
        mask = document_mask(documents)
        x = self.embed(tokens, images)
        for block in self.blocks:
            x = block(x, table, mask)
        return x

    def embed(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        """What the first block reads: [batch, sequence, hidden].

        images: those that tokens [batch, sequence] hold, in their order, uint8 [images, size, size, 3].
        The tower is called once whatever they are, so that no rank waits for one that has none: then on
        an image that takes no place.
        """
        # The embedding's output is asynchronous under tensor parallelism; entering a compiled block
        # as it is, it would lose its gradient without an error (torch 2.13).
        x: Tensor = self.embedding(tokens).clone()
        if self.vision is None or self.projector is None:
            return x
        if images is None or len(images) == 0:
            images, tokens = self.vision.black(tokens.device), torch.zeros_like(tokens)
        return self.split(put_in(x, tokens, self.projector(self.vision(images))))  # type: ignore[no-any-return]


def count_parameters(model: nn.Module, trained: bool = False) -> int:
    """Parameters of the whole model, shared ones once; or of those alone that are trained."""
    found = (p for p in model.parameters() if p.requires_grad or not trained)
    return sum(parameter.numel() for parameter in found)


def parameters_by_name(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under the names that they have without activation checkpointing."""
    for name, parameter in model.named_parameters():
        yield name.replace("_checkpoint_wrapped_module.", ""), parameter


def initial_weight(
    name: str, shape: torch.Size, config: Model, seed: int, device: torch.device
) -> Tensor:
    """The whole initial value of a parameter, in fp32: a function of its name and the seed alone.

    Normal with deviation 0.02, projections onto the residual path divided by sqrt(2 layers), norms
    one, biases zero: GPT-2 (Radford et al. 2019, section 2.3), as in Megatron-LM and OLMo. What reads
    images keeps the size of what it is given, as in SigLIP (LeCun et al. 1998, section 4.6), and so does
    an adapter's A; its B is zero (Hu et al. 2021, section 4.1).
    """
    if name.endswith(("lora_b", "bias")):
        return torch.zeros(shape, device=device)
    if len(shape) == 1:
        return torch.ones(shape, device=device)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)
    keeps_size = name.startswith(("vision.", "projector.")) or name.endswith("lora_a")
    std = 1 / math.sqrt(shape[1]) if keeps_size else INITIAL_STD
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        tower = config.vision if name.startswith("vision.") else None
        std /= math.sqrt(2 * (tower or config).layers)
    return torch.empty(shape, device=device).normal_(0, std, generator=generator)
