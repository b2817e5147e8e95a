"""A GPU to measure on any machine: nvidia-ml-py itself, over a library that plays a power curve."""

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pynvml  # type: ignore[import-untyped]

SOURCE = Path(__file__).parent / "energy" / "nvml_double.c"
Curve = list[tuple[float, float]]


@dataclass
class Gpu:
    """What the library tells of a GPU; `curve` is (second, watt) points, straight between them.

    An error is an NVML return code (`pynvml.NVML_ERROR_…`), 0 for none.
    """

    curve: Curve
    energy_error: int = 0
    power_error: int = 0
    field_error: int = pynvml.NVML_ERROR_NOT_SUPPORTED
    """Of the power of the moment, which old drivers do not tell."""
    limit_error: int = 0
    offset_mj: int = 1_000_000
    refresh: float = 0.0
    """Seconds between two values of the counter."""
    name: str = "NVIDIA-A100"


@dataclass
class NvmlDouble:
    """The library's script and its clock; `publish` makes what was changed true."""

    script: Path
    gpus: dict[str, Gpu] = field(default_factory=dict)
    seconds: float | None = 0.0
    """The time that the curves are at; None lets real time run from nvmlInit."""
    since: float | None = None
    """With `seconds` None: real time runs for all processes, from this moment of time.monotonic()."""
    lines: Path | None = None
    """A file; the time is as many seconds as it has lines."""
    step: float = 0.0
    """Seconds that each call of `clock` moves the time on by."""
    ticks: int = 0
    """How often `clock` was called."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, uuid: str, curve: Curve, energy_error: int = 0, power_error: int = 0) -> Gpu:
        self.gpus[uuid] = Gpu(curve, energy_error, power_error)
        self.publish()
        return self.gpus[uuid]

    def publish(self) -> None:
        real = "real" if self.since is None else f"since {self.since!r}"
        time = real if self.seconds is None else repr(self.seconds)
        lines = [f"clock lines {self.lines}" if self.lines else f"clock {time}"]
        for uuid, gpu in self.gpus.items():
            points = " ".join(f"{second!r}:{watt!r}" for second, watt in gpu.curve)
            errors = f"{gpu.energy_error} {gpu.power_error} {gpu.field_error} {gpu.limit_error}"
            lines.append(f"gpu {uuid} {gpu.name} {errors} {gpu.offset_mj} {gpu.refresh!r} {points}")
        draft = self.script.with_suffix(".draft")
        with self.lock:  # a meter's thread publishes too, through `clock`
            draft.write_text("\n".join(lines) + "\n")
            os.replace(draft, self.script)

    def go_to(self, seconds: float) -> None:
        self.seconds = seconds
        self.publish()

    def clock(self) -> float:
        """The clock to give a meter: the library's own time, so that the two can not differ."""
        assert self.seconds is not None
        self.ticks += 1
        self.go_to(self.seconds + self.step)
        return self.seconds


def compiled(folder: Path) -> Path | None:
    """The library in a folder of its own, which LD_LIBRARY_PATH can name; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    command = [compiler, *options, str(SOURCE), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, timeout=60)
    return library
