"""What the model takes at once: samples of a rank, cut into equal parts on its device."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panthalassa.config_model import Vision
from panthalassa.errors import CorpusError
from panthalassa.model.transformer import IGNORED
from panthalassa.model.vision import IMAGE
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
    samples: Samples, count: int, size: int, device: torch.device, vision: Vision | None = None
) -> list[MicroBatch]:
    """Cut samples into `count` micro-batches of `size`; what is missing is fully masked.

    vision: of a model that reads images. Raises CorpusError as `images_of_each` does.
    """
    labels = np.full_like(samples.tokens, IGNORED)
    labels[:, :-1] = np.where(samples.has_target, samples.tokens[:, 1:], IGNORED)
    missing = ((0, count * size - len(samples)), (0, 0))
    arrays = [
        _to_device(np.pad(array, missing, constant_values=fill).astype(np.int64), device)
        for array, fill in ((samples.tokens, 0), (samples.documents, PADDING), (labels, IGNORED))
    ]
    parts = [torch.split(array, size) for array in arrays]
    images: list[Tensor | None] = [None] * count
    if vision:
        each = images_of_each(samples, vision)
        if samples.images is not None:
            ends = np.cumsum([each[at : at + size].sum() for at in range(0, count * size, size)])
            pieces = np.split(samples.images, ends[:-1])
            images = [_to_device(piece.copy(), device) for piece in pieces]
    return [MicroBatch(*part) for part in zip(*parts, images, strict=True)]


def images_of_each(samples: Samples, vision: Vision) -> NDArray[np.int64]:
    """How many images each sample has. Raises CorpusError when there are not as many as tokens say."""
    tokens: NDArray[np.int64] = (samples.tokens == IMAGE).sum(axis=1)
    found = 0 if samples.images is None else len(samples.images)
    if (tokens % vision.tokens).any() or tokens.sum() != found * vision.tokens:
        raise CorpusError(
            f"{len(samples)} samples have {found} images and {tokens.sum()} tokens of images, and an "
            f"image takes {vision.tokens}: check the corpus with `panthalassa verify`."
        )
    each: NDArray[np.int64] = tokens // vision.tokens
    return each


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """From pinned memory when there is a GPU, so that the copy waits for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
