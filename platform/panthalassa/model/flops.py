"""Arithmetic of training: FLOPs that a token and an image need, FLOP/s that a device can give, and their
ratio, the MFU."""

import difflib
import time

import torch

from panthalassa.config_model import Model, Vision
from panthalassa.errors import ConfigError

PEAK_BF16 = {
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 149.7e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
    "V100": 125e12,
}
"""Dense tensor-core FLOP/s in bf16 (V100: fp16) by GPU, from NVIDIA's data sheets."""


def flops_per_token(
    model: Model,
    parameters: int,
    sequence_length: int,
    trained: int | None = None,
    forward_only: int = 0,
    images: float = 0.0,
) -> float:
    """6 N + 12 layers x width x sequence: forward and backward, attention counted in full.

    As PaLM (Chowdhery et al. 2022, appendix B) counts; what is computed again does not count. Of
    parameters that are not among the `trained` ones, the third of the 6 N that is their gradient is
    not computed. Each pass that is `forward_only` adds a third of a whole one.

    N are the parameters of the decoder, for every position. Those of a model's tower and projector
    count for the patches of `images`, so many a position (`flops_per_image`); where not all
    parameters are trained, adapters of the decoder are, and images go forward alone.
    """
    width = model.heads * model.head_size
    attention = 12.0 * model.layers * width * sequence_length
    vision = vision_parameters(model)
    frozen = 0 if trained is None else parameters - trained
    whole = 6.0 * (parameters - vision) + attention
    needed = whole - 2.0 * max(frozen - vision, 0) + forward_only * whole / 3
    if model.vision is None:
        return needed
    of_images = images * flops_per_image(model.vision, model.hidden_size)
    return needed + of_images * ((1 if frozen else 3) + forward_only) / 3


def flops_per_image(vision: Vision, width: int) -> float:
    """Forward and backward through the tower and the projector to a decoder of that width: of each
    patch 6 N, and its attention to all patches of its image."""
    attention = 12.0 * vision.layers * vision.hidden_size * vision.tokens
    of_patch = 6.0 * (tower_parameters(vision) + projector_parameters(vision, width)) + attention
    return vision.tokens * of_patch


def tower_parameters(vision: Vision) -> int:
    """Of the vision transformer: a linear layer on the patches, a table of positions, and blocks of
    attention and feed-forward with biases, each behind a norm."""
    hidden, ffn = vision.hidden_size, vision.ffn_size
    attention, feed_forward = 4 * (hidden + 1) * hidden, (2 * hidden + 1) * ffn + hidden
    embedding = (3 * vision.patch_size**2 + 1 + vision.tokens) * hidden
    return embedding + vision.layers * (attention + feed_forward + 4 * hidden)


def projector_parameters(vision: Vision, width: int) -> int:
    """Of the two layers from the tower to a decoder of that width."""
    return (vision.hidden_size + 1) * width + (width + 1) * width


def vision_parameters(model: Model) -> int:
    """Of the tower and the projector of a model; 0 of a model of text alone."""
    if model.vision is None:
        return 0
    return tower_parameters(model.vision) + projector_parameters(model.vision, model.hidden_size)


def peak_of(gpu: str) -> float:
    """FLOP/s of a GPU by its name, e.g. "NVIDIA A100-SXM4-80GB".

    Raises ConfigError for one that is not in the table: a guess would make every MFU a lie.
    """
    return PEAK_BF16[known_gpu(gpu)]


def known_gpu(gpu: str) -> str:
    """The name in the table that fits a GPU's. Raises ConfigError if none does."""
    if "MIG" in gpu:
        raise ConfigError(
            f"{gpu!r} is a slice of a GPU, whose peak is not known: set cluster.peak_flops to its "
            "dense bf16 FLOP/s."
        )
    words = gpu.replace("-", " ").replace("_", " ").lower().split()
    for name in sorted(PEAK_BF16, key=len, reverse=True):
        if all(word in words for word in name.lower().split()):
            return name
    near = difflib.get_close_matches(gpu.upper(), PEAK_BF16, n=1, cutoff=0.3)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ConfigError(
        f"unknown GPU {gpu!r}: its peak is needed for the MFU{hint}. Set cluster.peak_flops to its "
        f"dense bf16 FLOP/s, or to one of {', '.join(PEAK_BF16)}."
    )


def measured_peak(seconds: float = 1.0) -> float:
    """The best FLOP/s that square fp32 products of 512 reach on this CPU, with torch's threads.

    A product takes a few milliseconds: short enough that the best is undisturbed on a busy machine.
    """
    size = 512
    a, b = torch.randn(2, size, size)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_flops(setting: float | str, device: torch.device) -> float:
    """FLOP/s of one rank, from the key cluster.peak_flops and the device."""
    if isinstance(setting, float):
        return setting
    if setting != "auto":
        return peak_of(setting)
    if device.type == "cpu":
        return measured_peak()
    return peak_of(torch.cuda.get_device_name(device))
