"""A GPU to measure on any machine: nvidia-ml-py itself, over a library that plays a power curve."""

import ctypes
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pynvml  # type: ignore[import-untyped]
import pytest

SOURCE = Path(__file__).with_name("nvml_double.c")
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


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled, in a folder of its own that LD_LIBRARY_PATH can name."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the stand-in for NVML needs a C compiler (`cc`), which is not on the PATH")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    command = [compiler, *options, str(SOURCE), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlDouble:
    """nvidia-ml-py in this process calls the stand-in, which has no GPU until a test adds one."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("NVML_DOUBLE", str(tmp_path / "nvml_double.script"))
    double = NvmlDouble(tmp_path / "nvml_double.script")
    double.publish()
    return double


@dataclass(frozen=True)
class RaplTree:
    """A powercap tree on disk with the kernel's names."""

    root: Path

    def add(
        self, zone: str, name: str, energy_uj: int = 0, range_uj: int = 262_143_328_850
    ) -> None:
        folder = self.root / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(zone, energy_uj)

    def set(self, zone: str, energy_uj: int) -> None:
        draft = self.root / zone / "energy_uj.draft"
        draft.write_text(f"{energy_uj}\n")
        os.replace(draft, self.root / zone / "energy_uj")


@pytest.fixture
def rapl(tmp_path: Path) -> RaplTree:
    """An empty tree; it may have zones added at any time before the meter is made."""
    root = tmp_path / "powercap"
    root.mkdir()
    return RaplTree(root)
