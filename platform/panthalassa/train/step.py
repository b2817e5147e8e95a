"""One optimizer step on one rank: micro-batches in, an updated model out.

The loss of a step is the sum over the tokens of the global batch divided by their number. So each
rank divides its own sums by the *global* count, gradients are summed over ranks, and the result does
not depend on how the batch was split.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from panthalassa.config import Guard, Optimizer, Train
from panthalassa.model.transformer import IGNORED, Transformer
from panthalassa.stream.reader import PADDING, Samples, no_samples
from panthalassa.train.guard import NormGuard


@dataclass(frozen=True)
class MicroBatch:
    """What the model takes at once: three int64 tensors [micro_batch, sequence]."""

    tokens: Tensor
    documents: Tensor
    labels: Tensor


def micro_batches(
    samples: Samples, count: int, size: int, device: torch.device
) -> list[MicroBatch]:
    """Cut samples into `count` micro-batches of `size`; what is missing is fully masked."""
    labels = np.full_like(samples.tokens, IGNORED)
    labels[:, :-1] = np.where(samples.has_target, samples.tokens[:, 1:], IGNORED)
    missing = ((0, count * size - len(samples)), (0, 0))
    arrays = [
        _to_device(np.pad(array, missing, constant_values=fill).astype(np.int64), device)
        for array, fill in ((samples.tokens, 0), (samples.documents, PADDING), (labels, IGNORED))
    ]
    parts = [torch.split(array, size) for array in arrays]
    return [MicroBatch(*part) for part in zip(*parts, strict=True)]


def _to_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """From pinned memory when there is a GPU, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )  # fmt: skip


def loss_context(mesh: DeviceMesh) -> AbstractContextManager[None]:
    """In which forward and backward run: the loss on logits split over the vocabulary, if they are."""
    return loss_parallel() if mesh["tp"].size() > 1 else nullcontext()


def warm_up(model: Transformer, mesh: DeviceMesh, train: Train, device: torch.device) -> None:
    """Have torch compile what evaluation and steps need, on a micro-batch of nothing but padding."""
    [batch] = micro_batches(no_samples(train.sequence_length), 1, train.micro_batch, device)
    for training in (False, True):
        with torch.set_grad_enabled(training), loss_context(mesh):
            loss = model(batch.tokens, batch.documents, batch.labels, train.loss_chunk)
            if training:
                loss.backward()
    model.zero_grad()


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    mesh: DeviceMesh,
    train: Train,
    global_tokens: int,
    learning_rate: float,
    keep_gathered: bool,
    guard: NormGuard,
    setting: Guard,
) -> tuple[Tensor, Tensor]:
    """Run one step; returns this rank's summed loss (nats) and the gradient's global norm.

    The guard may leave out the update. All are tensors on the device: reading them waits for it.
    """
    loss_sum = torch.zeros((), device=batches[0].tokens.device)
    assert isinstance(model, FSDPModule)
    for number, batch in enumerate(batches):
        if keep_gathered:
            last = number == len(batches) - 1
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last)
        with loss_context(mesh):
            loss = model(batch.tokens, batch.documents, batch.labels, train.loss_chunk)
            (loss / global_tokens).backward()
        loss_sum += loss.detach()
    norm = nn.utils.clip_grad_norm_(model.parameters(), train.optimizer.clip_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # What GradScaler tells the fused kernel so; a clipped NaN is in the gradients alone, which go.
    optimizer.found_inf = guard.refuses(norm, setting)  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum, norm
