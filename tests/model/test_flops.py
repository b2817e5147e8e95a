"""Known answers of the arithmetic of training."""

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.model import flops
from panthalassa.model.flops import (
    flops_per_token,
    measured_peak,
    peak_flops,
    peak_of,
    tower_parameters,
    vision_parameters,
)
from panthalassa.model.transformer import Transformer, count_parameters

FLAGSHIP = Model.model_validate({"preset": "panthalassa-12b"})
WHOLE, DECODER = 12_291_915_776, 11_956_761_600
IMAGE = 1_256_137_555_968
"""FLOPs: 576 patches x (6 x (303,686,656 + 31,467,520) + 12 x 24 layers x 1024 wide x 576)."""


def test_the_flagship_needs_81_gigaflop_a_token_and_its_tower_1256_an_image() -> None:
    # 6 x 11,956,761,600 = 71,740,569,600; 12 x 36 layers x 5120 wide x 4096 = 9,059,696,640
    assert flops_per_token(FLAGSHIP, WHOLE, 4096) == 80_800_266_240
    with_images = flops_per_token(FLAGSHIP, WHOLE, 4096, images=3 / 4096)
    assert with_images == 80_800_266_240 + 3 * IMAGE / 4096
    assert 2 * IMAGE == 576 * (12 * (303_686_656 + 31_467_520) + 24 * 24 * 1024 * 576)


def test_the_same_decoder_without_a_tower_needs_as_much_for_text() -> None:
    text_alone = FLAGSHIP.model_copy(update={"vision": None})
    for trained, forward_only in ((None, 0), (DECODER, 0), (1_000_000, 1)):
        alone = flops_per_token(text_alone, DECODER, 4096, trained, forward_only)
        more = None if trained is None else trained if trained < DECODER else WHOLE
        assert flops_per_token(FLAGSHIP, WHOLE, 4096, more, forward_only) == alone


def test_images_go_forward_alone_where_adapters_of_the_decoder_are_trained() -> None:
    def of_an_image(trained: int, forward_only: int) -> float:
        without, one = (
            flops_per_token(FLAGSHIP, WHOLE, 4096, trained, forward_only, images)
            for images in (0.0, 1.0)
        )
        return one - without

    assert of_an_image(WHOLE, 0) == IMAGE
    assert of_an_image(1_000_000, 0) == pytest.approx(IMAGE / 3)
    assert of_an_image(1_000_000, 1) == pytest.approx(2 * IMAGE / 3)


def test_towers_count_as_transformers_counts_them() -> None:
    """SigLIP's L/16 at 384 pixels; its last norm belongs to a pooling that is not used."""
    vision = FLAGSHIP.vision
    assert vision
    config = SiglipVisionConfig(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        intermediate_size=vision.ffn_size,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_use_head=False,
    )
    with torch.device("meta"):
        theirs = SiglipVisionModel(config)
        ours = Transformer(FLAGSHIP)
    norm = "post_layernorm"
    expected = sum(p.numel() for name, p in theirs.named_parameters() if norm not in name)
    assert tower_parameters(vision) == expected == 303_686_656
    assert vision_parameters(FLAGSHIP) == WHOLE - DECODER
    assert count_parameters(ours) == WHOLE


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
