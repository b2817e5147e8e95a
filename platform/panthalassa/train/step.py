"""One optimizer step on one rank: micro-batches in, an updated model out.

The loss of a step is the sum over the tokens (or other units of the objective) of the global batch
divided by their number. So each rank divides its own sums by the *global* count, gradients are summed
over ranks, and the result does not depend on how the batch was split.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from panthalassa.config import Guard, Optimizer, Train
from panthalassa.model.transformer import Transformer
from panthalassa.stream.reader import no_samples
from panthalassa.train.guard import NormGuard
from panthalassa.train.micro_batch import MicroBatch, micro_batches
from panthalassa.train.objective import Objective


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone, and what is frozen altogether."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
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
    """Have torch compile what evaluation and steps need, on a micro-batch of nothing but padding.

    Images are shown to it alone, and two at a time: there is one graph for a single image, and one for
    any other number.
    """
    [batch] = micro_batches(no_samples(train.sequence_length), 1, train.micro_batch, device)
    black = model.vision.black(device) if model.vision else None
    for training in (False, True):
        for images in (None,) if black is None else (black, black.expand(2, -1, -1, -1)):
            with torch.set_grad_enabled(training), loss_context(mesh):
                loss = model(
                    batch.tokens, batch.documents, batch.labels, train.loss_chunk, images=images
                )
                if training:
                    loss.backward()
    model.zero_grad()


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    mesh: DeviceMesh,
    train: Train,
    objective: Objective,
    units: int,
    learning_rate: float,
    keep_gathered: bool,
    guard: NormGuard,
    setting: Guard,
) -> tuple[Tensor, Tensor]:
    """Run one step; returns this rank's summed loss and the gradient's global norm.

    units: those of the objective in the global batch.
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
            loss = objective.loss(model, batch, train.loss_chunk)
            (loss / units).backward()  # type: ignore[no-untyped-call]
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
