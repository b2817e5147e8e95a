"""What is measured on any machine: GPUs over a stand-in for NVML, and a powercap tree."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import pynvml  # type: ignore[import-untyped]
import pytest
from nvml import NvmlDouble, compiled


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled."""
    library = compiled(tmp_path_factory.mktemp("nvml"))
    if library is None:
        pytest.skip("the stand-in for NVML needs a C compiler (`cc`), which is not on the PATH")
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
