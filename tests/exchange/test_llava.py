"""A LLaVA model of transformers becomes a run, says the same of images, and comes back byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llama import load_ours, tensors
from llava import (
    SPAN,
    differ_on_images,
    load_llava,
    normalised,
    save_llava,
    some_images,
)

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import ConfigError
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import open_model
from panthalassa.model.generate import generate_batch
from panthalassa.storage import open_storage


def imported(source: Path, run: Path) -> None:
    import_model(open_storage(str(source)), open_storage(str(run)), print)


def exported(run: Path, folder: Path, **options: Any) -> None:
    export(open_storage(str(run)), open_storage(str(folder)), print, **options)


@pytest.mark.parametrize("tied", [False, True])
def test_it_says_the_same_of_images_and_comes_back_byte_for_byte(
    tied: bool, tmp_path: Path
) -> None:
    theirs = save_llava(tmp_path / "source", tied=tied)
    imported(tmp_path / "source", tmp_path / "run")
    ours, commit = load_ours(tmp_path / "run")
    assert commit.shape.vision is not None
    for count in (0, 1, 3):
        assert differ_on_images(ours, theirs, count) < 1e-4
    exported(tmp_path / "run", tmp_path / "back", shard=100_000)
    assert tensors(tmp_path / "back") == tensors(tmp_path / "source")
    assert differ_on_images(ours, load_llava(tmp_path / "back")) < 1e-4


def test_prompts_with_images_are_continued_as_transformers_does(tmp_path: Path) -> None:
    theirs = save_llava(tmp_path / "model")
    tokenizer = Tokenizer.train(["the sea, the sea and the land"] * 3, 320)
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    found = open_model(open_storage(str(tmp_path / "model")), torch.device("cpu"))
    images = some_images(3)
    prompts = [[0, *SPAN, 50, 60], [0, 44, 200, 41], [0, *SPAN, *SPAN, 99]]
    shown = [images[:1], images[:0], images[1:]]
    said = generate_batch(found.model, prompts, 40, images=[*map(torch.from_numpy, shown)])
    for prompt, seen, answer in zip(prompts, shown, said, strict=True):
        pixels = {"pixel_values": normalised(seen)} if len(seen) else {}
        whole = theirs.generate(
            input_ids=torch.tensor([prompt]),
            **pixels,
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=-1,
        )
        assert answer == whole[0, len(prompt) :].tolist()
    assert found.length == 128


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_config", "model_type", "clip_vision_model"),
        ("vision_config", "hidden_act", "gelu"),
        ("vision_config", "vision_use_head", True),
        (None, "vision_feature_layer", -2),
        (None, "vision_feature_layer", [-2, -5]),
        (None, "vision_feature_select_strategy", "default"),
        (None, "projector_hidden_act", "relu"),
        (None, "multimodal_projector_bias", False),
        (None, "image_token_index", 32000),
        ("text_config", "model_type", "mistral"),
        ("vision_config", "patch_size", 9),
        ("vision_config", "num_hidden_layers", 3),
        ("vision_config", "intermediate_size", 81),
    ],
)
def test_another_architecture_is_refused_with_the_field_that_differs(
    source: Path, tmp_path: Path, section: str | None, field: str, value: object
) -> None:
    place = tmp_path / "source"
    place.mkdir()
    for path in source.iterdir():
        (place / path.name).hardlink_to(path)
    content = json.loads((source / "config.json").read_text())
    (content[section] if section else content)[field] = value
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as refusal:
        imported(place, tmp_path / "run")
    told = {
        "num_hidden_layers": "encoder.layers.2.layer_norm1.weight is missing",
        "intermediate_size": "makes it [81, 48]",
        "patch_size": "image_size=32 is not a multiple of patch_size=9",
    }
    assert told.get(field, f"{field} is {value!r}") in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder
