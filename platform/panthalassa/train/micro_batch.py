"""What the model takes at once: samples of a rank, cut into equal parts on its device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panthalassa.model.transformer import IGNORED
from panthalassa.stream.reader import PADDING, Samples


@dataclass(frozen=True)
class MicroBatch:
    """Three int64 tensors [micro_batch, sequence], and the images of its samples in their order, uint8
    [images, size, size, 3]; None where the model reads none."""

    tokens: Tensor
    documents: Tensor
    labels: Tensor
    images: Tensor | None = None


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
