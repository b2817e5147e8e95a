"""A node: what it is made of, and how busy it is, by psutil and NVML, under MLflow's names."""

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pynvml

MEGABYTE = 1e6


def hardware() -> str:
    """Processors, memory and GPUs of this node."""
    found = [
        f"{psutil.cpu_count()} x {_processor()}",
        f"{psutil.virtual_memory().total / 1e9:.0f} GB",
    ]
    with suppress(pynvml.NVMLError):
        names = [str(pynvml.nvmlDeviceGetName(gpu)) for gpu in _gpus()]
        found += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(found)


def load() -> dict[str, float]:
    """How busy this node has been since the last call, and its memory; of GPUs where there are some.

    The first call tells of the time since the machine started.
    """
    memory = psutil.virtual_memory()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
    }
    with suppress(pynvml.NVMLError):  # what it can not tell is left out
        found |= _load_of(_gpus())
    return found


def _load_of(gpus: list[Any]) -> dict[str, float]:
    if not gpus:
        return {}
    memories = [pynvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
    used, total = (sum(getattr(m, part) for m in memories) for part in ("used", "total"))
    busy = [float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in gpus]
    return {
        "gpu_utilization_percentage": sum(busy) / len(busy),
        "gpu_memory_usage_megabytes": used / MEGABYTE,
        "gpu_memory_usage_percentage": 100 * used / total,
    }


@cache
def _gpus() -> list[Any]:
    """NVML's handles of this node's GPUs; none without NVML."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
    except pynvml.NVMLError:
        return []


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
