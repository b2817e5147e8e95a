"""Low-rank adapters (LoRA, Hu et al. 2021): y = W x + (alpha / rank) B A x, where W stays as it is.

An adapted layer is still a linear layer with the same weight under the same name, so that `parallel`
shards it as before and the base model's weights load into it. Under tensor parallelism A and B are
split as W is: B by its outputs where W is, A by its inputs where W is, and the other one is whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from panthalassa.config_finetune import Lora
from panthalassa.model.transformer import Transformer

ADAPTERS = ("lora_a", "lora_b")
"""How the names of an adapter's weights end."""


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return parameter.endswith(ADAPTERS)


class Dropout:
    """Which inputs of the adapters a step leaves out.

    A choice is a hash of the seed, the step, the sample, the position in it and the input, as a
    counter-based generator's. So it is the same for every layout of ranks and however often the backward
    pass computes it again.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed, self.step = share, seed, 0
        self._rows: Tensor | None = None

    def begin(self, tokens: Tensor) -> None:
        """A forward pass over tokens [batch, sequence] begins."""
        place = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
        sample = (_mix(place) * tokens.int()).sum(dim=1, dtype=torch.int32)
        at = torch.full_like(sample, _word(self.seed * 0x9E3779B1 + self.step))
        self._rows = _mix(_mix(sample + _mix(at))[:, None] + place)

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """x [batch, sequence, inputs] with some numbers zero and the others larger, in training."""
        if not (self.share and torch.is_grad_enabled()):
            return x
        assert self._rows is not None
        local = x.to_local() if isinstance(x, DTensor) else x
        first = 0
        if isinstance(x, DTensor) and x.placements[0].is_shard(x.ndim - 1):
            first = x.device_mesh.get_local_rank() * local.shape[-1]
        inputs = torch.arange(first, first + local.shape[-1], device=x.device, dtype=torch.int32)
        drawn = _mix(self._rows[..., None] + _mix(inputs + _word(layer << 20)))
        kept = (drawn >= int((self.share - 0.5) * 2**32)) / (1 - self.share)
        factor = kept.to(local.dtype)
        if isinstance(x, DTensor):
            factor = DTensor.from_local(factor, x.device_mesh, x.placements)
        return x * factor


def _mix(words: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby 2011), on int32 words that wrap around."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        words = words ^ (words >> shift & (1 << 32 - shift) - 1)
        words = words * _word(factor)
    return words


def _word(number: int) -> int:
    """The lowest 32 bits, as a signed number."""
    return (number + 2**31) % 2**32 - 2**31


class LoraLinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, and its adapter."""

    def __init__(self, base: nn.Linear, lora: Lora, dropout: Dropout, layer: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(base.out_features, lora.rank, device=device))
        self.scale, self.dropout, self.layer = lora.alpha / lora.rank, dropout, layer
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        if not self.enabled:
            return y
        low = F.linear(self.dropout(x, self.layer), self.lora_a)
        return y + self.scale * _raised(low, self.lora_b)

    def split_as_weight(self, mesh: DeviceMesh) -> None:
        """Split the adapter, on the meta device, over the tensor-parallel mesh that the weight is on."""
        assert isinstance(self.weight, DTensor)
        by_output = self.weight.placements[0].is_shard(0)
        a, b = (Replicate(), Shard(0)) if by_output else (Shard(1), Replicate())
        for name, placement in (("lora_a", a), ("lora_b", b)):
            whole = torch.empty(getattr(self, name).shape, device="meta")
            part = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
            setattr(self, name, nn.Parameter(part))


def _raised(low: Tensor, b: Tensor) -> Tensor:
    """B times `low`. Where each rank has a summand of `low`, it computes one of the result, which is
    summed up together with that of the weight."""
    if not (isinstance(low, DTensor) and isinstance(b, DTensor) and low.placements[0].is_partial()):
        return F.linear(low, b)
    mine = low.to_local(grad_placements=[Replicate()])
    raised = F.linear(mine, b.to_local(grad_placements=[Partial()]))
    return DTensor.from_local(raised, low.device_mesh, [Partial()])


def add_adapters(model: Transformer, lora: Lora, seed: int) -> None:
    """Give the target layers of each block an adapter; all other weights are frozen by `freeze`."""
    dropout = Dropout(lora.dropout, seed)
    for index, block in enumerate(model.blocks):
        for number, (name, module) in enumerate(list(block.named_modules())):
            parent, _, own = name.rpartition(".")
            if own in lora.targets:
                layer = index << 8 | number
                adapted = LoraLinear(module, lora, dropout, layer)
                setattr(block.get_submodule(parent), own, adapted)
    model.register_forward_pre_hook(lambda _, inputs: dropout.begin(inputs[0]))


def adapted(model: nn.Module) -> list[LoraLinear]:
    """The layers that have an adapter."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def freeze(model: nn.Module) -> None:
    """Leave out of the training all weights but adapters, where there are any."""
    if adapted(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_adapter(name))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """A block in which the model is the one beneath its adapters."""
    layers = adapted(model)
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
