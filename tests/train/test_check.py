"""What a run is refused for before anything starts: a corpus of another kind than the run."""

from pathlib import Path
from typing import Any

import pytest
from orders import manifest_of

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import MANIFEST, Manifest, Objective
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
