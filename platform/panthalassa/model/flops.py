"""Arithmetic of training: FLOPs a token needs, FLOP/s a device can give, and their ratio, the MFU."""

import difflib
import time

import torch

from panthalassa.config_model import Model
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
) -> float:
    """6 N + 12 layers x width x sequence: forward and backward, attention counted in full.

    As PaLM (Chowdhery et al. 2022, appendix B) counts; what is computed again does not count. Of
    parameters that are not among the `trained` ones, the third of the 6 N that is their gradient is
    not computed. Each pass that is `forward_only` adds a third of a whole one.
    """
    width = model.heads * model.head_size
    attention = 12.0 * model.layers * width * sequence_length
    frozen = 0 if trained is None else parameters - trained
    whole = 6.0 * parameters + attention
    return whole - 2.0 * frozen + forward_only * whole / 3


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
