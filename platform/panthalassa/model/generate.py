"""Continuations of prompts, token by token, by whatever ranks hold the model.

All ranks call `generate` with the same arguments and get the same text: the model may be sharded over
them. Every step runs the model over the whole text so far; there is no cache of keys and values.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from panthalassa.model.transformer import Transformer

PAD_TO = 64
"""Lengths are padded to a multiple of this, so that few shapes occur."""


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    limit: int,
    temperature: float,
    seed: int,
    stop: int,
    tp_size: int = 1,
) -> list[int]:
    """At most `limit` token ids that continue `prompt` (ids, not empty), up to the id `stop`.

    Samples at `temperature`; 0 takes the most likely token. tp_size: ranks over which the model splits
    sequences.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        logits = _next_logits(model, torch.tensor([ids], device=device), math.lcm(PAD_TO, tp_size))
        if temperature == 0:
            token = int(logits.argmax())
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


def _next_logits(model: Transformer, ids: Tensor, multiple: int) -> Tensor:
    """Logits of what follows ids [1, n]: fp32 [vocabulary] on the CPU."""
    length = ids.shape[1]
    padded = torch.nn.functional.pad(ids, (0, -length % multiple))
    logits = model(padded, torch.zeros_like(padded))
    whole = logits.full_tensor() if isinstance(logits, DTensor) else logits
    return whole[0, length - 1].float().cpu()
