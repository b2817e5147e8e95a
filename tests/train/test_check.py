"""What a run is refused for before anything starts: a corpus of another kind than the run."""

from pathlib import Path
from typing import Any

import pytest
from orders import manifest_of

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import MANIFEST, Images, Manifest, Objective
from panthalassa.errors import ConfigError
from panthalassa.train.check import check

LENGTH = 32


def corpus(folder: Path, objective: Objective | None) -> Manifest:
    texts = manifest_of({"aa": [[4, 4]]}, {"aa": [[4]]}, LENGTH)
    manifest = texts.model_copy(update={"objective": objective})
    folder.mkdir()
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest


def config_of(folder: Path, objective: Objective | None, *overrides: str) -> Config:
    tree: dict[str, Any] = {
        "run": {"name": "checked", "directory": str(folder / "runs")},
        "corpus": {"directory": str(folder / "corpus")},
        "model": {"preset": "laptop"},
        "train": {
            "steps": 9,
            "global_batch": 2,
            "micro_batch": 1,
            "sequence_length": LENGTH,
            "schedule": {"warmup_steps": 1},
        },
    }
    if objective:
        tree["finetune"] = {"start": "anywhere", "objective": objective, "lora": {"rank": 2}}
    return build(tree, list(overrides), "test", Config)


@pytest.mark.parametrize("objective", [None, "sft", "dpo"])
def test_a_corpus_of_the_runs_own_kind_is_taken(
    tmp_path: Path, objective: Objective | None
) -> None:
    manifest = corpus(tmp_path / "corpus", objective)
    assert check(config_of(tmp_path, objective)) == manifest


@pytest.mark.parametrize(
    ("has", "wanted", "told"),
    [
        ("sft", None, r"holds examples for fine-tuning \(sft\).*`panthalassa finetune`"),
        ("dpo", None, r"holds examples for fine-tuning \(dpo\).*`panthalassa finetune`"),
        (None, "sft", "finetune.objective=sft does not fit .* holds texts and no examples"),
        ("sft", "dpo", "finetune.objective=dpo does not fit .* was prepared for sft"),
        ("dpo", "sft", "finetune.objective=sft does not fit .* was prepared for dpo"),
    ],
)
def test_a_corpus_of_another_kind_is_refused(
    tmp_path: Path, has: Objective | None, wanted: Objective | None, told: str
) -> None:
    corpus(tmp_path / "corpus", has)
    with pytest.raises(ConfigError, match=told) as refused:
        check(config_of(tmp_path, wanted))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [LENGTH // 2, LENGTH * 2, LENGTH - 1])
def test_rows_of_examples_are_read_whole(tmp_path: Path, length: int) -> None:
    corpus(tmp_path / "corpus", "sft")
    told = rf"train.sequence_length={length}, .* set it to {LENGTH}\.$"
    with pytest.raises(ConfigError, match=told):
        check(config_of(tmp_path, "sft", f"train.sequence_length={length}"))
    later = f"stream.phases=[{{from_step: 3, sequence_length: {length}}}]"
    with pytest.raises(ConfigError, match=rf"stream.phases.0.sequence_length={length}, "):
        check(config_of(tmp_path, "sft", later))


def test_rows_of_texts_may_be_cut(tmp_path: Path) -> None:
    corpus(tmp_path / "corpus", None)
    check(config_of(tmp_path, None, f"train.sequence_length={LENGTH // 2}"))


def with_images(folder: Path, size: int = 64, tokens: int = 16) -> Manifest:
    texts = manifest_of({"images-de": [[4, 4]]}, {"images-de": [[4]]}, LENGTH)
    manifest = texts.model_copy(update={"images": Images(size=size, tokens=tokens)})
    folder.mkdir()
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest


def test_images_that_the_model_reads_are_taken(tmp_path: Path) -> None:
    manifest = with_images(tmp_path / "corpus")
    assert check(config_of(tmp_path, None, "model.preset=laptop-vision")) == manifest


def test_a_model_that_reads_images_takes_a_corpus_of_text(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "corpus", None)
    assert check(config_of(tmp_path, None, "model.preset=laptop-vision")) == manifest


@pytest.mark.parametrize(
    ("size", "tokens", "overrides", "told"),
    [
        (
            64,
            16,
            (),
            "has images, and the model reads text alone: give it the section model.vision",
        ),
        (32, 16, ("model.preset=laptop-vision",), "have 32 pixels a side and take 16 tokens; "),
        (64, 4, ("model.preset=laptop-vision",), "take 4 tokens; .*make 16 tokens. Correct"),
    ],
)
def test_images_that_the_model_does_not_read_are_refused(
    tmp_path: Path, size: int, tokens: int, overrides: tuple[str, ...], told: str
) -> None:
    with_images(tmp_path / "corpus", size, tokens)
    with pytest.raises(ConfigError, match=told) as refused:
        check(config_of(tmp_path, None, *overrides))
    assert "\n" not in str(refused.value)


def test_rows_with_images_are_read_whole(tmp_path: Path) -> None:
    with_images(tmp_path / "corpus")
    for key, override in (
        ("train.sequence_length", "train.sequence_length=16"),
        ("stream.phases.0.sequence_length", "stream.phases=[{from_step: 3, sequence_length: 16}]"),
    ):
        with pytest.raises(
            ConfigError, match=rf"{key}=16, but the images at .* set it to {LENGTH}"
        ):
            check(config_of(tmp_path, None, "model.preset=laptop-vision", override))
