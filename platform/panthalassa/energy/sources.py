"""Which meter a rank gets: the source that is asked for, or the one that there is."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from panthalassa.energy.meters import Absent, Meter, MeterLost, NoCounter
from panthalassa.energy.nvml import NvmlCounter, NvmlPower, visible_gpus
from panthalassa.energy.rapl import POWERCAP, Rapl
from panthalassa.errors import ConfigError

Source = Literal["auto", "nvml", "rapl", "none"]


def choose(
    source: Source,
    gpu_uuids: Sequence[str] | None,
    rapl_root: Path = POWERCAP,
) -> Meter | Absent:
    """The meter of a rank: NVML when it has GPUs, RAPL when it has none, or the source asked for.

    `gpu_uuids` are NVML's names of the rank's GPUs (`GPU-…`, `MIG-…`); None of a rank that computes on
    the CPU, for which NVML means all GPUs that it sees. A GPU rank never falls back to the CPU's joules.
    Under `auto` a missing source is an Absent; one that was asked for by name raises ConfigError.
    """
    if source == "none":
        return Absent("energy is not measured: energy.source=none")
    try:
        if source == "nvml" or (source == "auto" and gpu_uuids):
            return _nvml(gpu_uuids)
        return Rapl(rapl_root)
    except MeterLost as error:
        if source == "auto":
            no_gpu = "" if gpu_uuids else "this rank has no GPU; "
            return Absent(f"no power source: {no_gpu}{error}")
        raise ConfigError(
            f"energy.source={source} can not be read: {error}. Mend that, or set "
            "energy.source=auto, which trains without energy figures where there is no source"
        ) from error


def _nvml(gpu_uuids: Sequence[str] | None) -> Meter:
    if gpu_uuids is None:
        gpu_uuids = visible_gpus(os.environ)
    if not gpu_uuids:
        raise MeterLost("this rank sees no GPU (CUDA_VISIBLE_DEVICES?)")
    try:
        meter = NvmlCounter(gpu_uuids)
    except NoCounter:
        return NvmlPower(gpu_uuids)
    meter.probe()
    return meter
