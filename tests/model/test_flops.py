"""Known answers of the arithmetic of training."""

import pytest
import torch

from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.model import flops
from panthalassa.model.flops import flops_per_token, measured_peak, peak_flops, peak_of


def test_the_flagship_needs_83_gigaflop_a_token() -> None:
    flagship = Model.model_validate({"preset": "panthalassa-12b"})
    # 6 x 12,310,656,000 = 73,863,936,000; 12 x 36 layers x 5120 wide x 4096 = 9,059,696,640
    assert flops_per_token(flagship, 12_310_656_000, 4096) == 82_923_632_640


def test_attention_is_as_wide_as_its_heads() -> None:
    narrow = Model.model_validate({"preset": "laptop", "heads": 4})
    # 12 x 4 layers x (4 heads of 32) x 256
    assert flops_per_token(narrow, 0, 256) == 1_572_864


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA A40", 149.7),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_gives(name: str, teraflops: float) -> None:
    assert peak_of(name) == teraflops * 1e12


def test_the_longer_name_wins_wherever_it_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "PEAK_BF16", {"H100": 1.0, "H100 PCIe": 2.0})
    assert peak_of("NVIDIA H100 PCIe") == 2.0
    assert peak_of("NVIDIA H100 80GB HBM3") == 1.0


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA A30", "NVIDIA L40", ""])
def test_an_unknown_gpu_is_refused_with_the_key_that_mends_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.peak_flops") as refusal:
        peak_of(name)
    assert repr(name) in str(refusal.value)


def test_a_stated_peak_is_taken_as_it_is() -> None:
    cpu = torch.device("cpu")
    assert peak_flops(1.5e12, cpu) == 1.5e12
    assert peak_flops("H100 PCIe", cpu) == 756e12


def test_a_cpu_is_measured() -> None:
    assert 1e8 < measured_peak(seconds=0.05) < 1e14
