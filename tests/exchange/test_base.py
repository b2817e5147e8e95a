"""A fine-tuning begins with a source's weights, shape and tokenizer, and needs the source no more."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DAMAGES, flip, refusal, save
from llama import differ, load_ours, save_llama
from ranks import TinyRun, tiny, whole
from s3 import BUCKET, Server

from panthalassa.config import Config
from panthalassa.config_model import Model
from panthalassa.corpus.manifest import TOKENIZER
from panthalassa.errors import CorruptError, PanthalassaError
from panthalassa.exchange.base import (
    copy_weights,
    shape_of,
    tokenizer_of,
)
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.model.transformer import parameters_by_name
from panthalassa.storage import Storage, open_storage
from panthalassa.train import restore
from panthalassa.train.checkpoint import COMMIT, Commit, State
from panthalassa.train.run import Outcome

FIRST = "step-00000000"


def copied(source: Path | str, target: Path | str) -> Commit:
    return copy_weights(open_storage(str(source)), open_storage(str(target)), None, print)


def save_two(config: Config, folder: str) -> dict[str, torch.Tensor]:
    """A run with two checkpoints; the weights of the older one."""
    run = TinyRun(config)
    run.step(0)
    save(run, open_storage(folder), 1)
    found = {name: whole(parameter).clone() for name, parameter in parameters_by_name(run.model)}
    run.step(1)
    save(run, open_storage(folder), 2)
    return found


def loaded(config: Config, base: Storage) -> tuple[dict[str, torch.Tensor], list[str], str | None]:
    """All weights but one of a fresh run filled from a base; the names of those that stayed, and what a
    whole state says."""
    run = TinyRun(config)
    before = {name: whole(p).clone() for name, p in parameters_by_name(run.model)}
    tensors = State(run.model, run.optimizer).tensors()
    weights = {name: t for name, t in tensors.items() if name.startswith("weight.")}
    del weights["weight.head.norm.weight"]
    restore.verify(base, FIRST).load_tensors(weights)
    after = {name: whole(p) for name, p in parameters_by_name(run.model)}
    same = [name for name in after if torch.equal(before[name], after[name])]
    state = State(run.model, run.optimizer)
    return after, same, refusal(restore.load, base, FIRST, state)


def test_any_ranks_load_the_newest_good_weights_of_a_run_and_nothing_else_is_there(
    ranks: Any, tmp_path: Path
) -> None:
    overrides = ("parallel.tp_size=2", "model.tied_embeddings=true")
    expected = ranks(4, save_two, tiny(*overrides), str(tmp_path / "run"))[0]
    flip(0.5)(tmp_path / "run" / "step-00000002" / ".metadata")
    commit = copied(tmp_path / "run", tmp_path / "base")
    assert (commit.step, commit.phases, commit.model) == (0, [], tiny(*overrides).model.identity())
    shutil.rmtree(tmp_path / "run")
    assert copied(tmp_path / "run", tmp_path / "base") == commit
    fresh = tiny("model.tied_embeddings=true", "run.seed=99")
    for found, same, refused in ranks(2, loaded, fresh, open_storage(str(tmp_path / "base"))):
        assert same == ["head.norm.weight"]
        for name in found.keys() - {"head.norm.weight"}:
            assert torch.equal(found[name], expected[name]), name
        assert "can not be loaded" in refused


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_copied_bit_by_bit_also_over_object_storage(
    server: Server, s3: str, tmp_path: Path, dtype: str
) -> None:
    theirs = save_llama(tmp_path / "llama", dtype)
    shutil.copytree(tmp_path / "llama", server.folder / BUCKET / f"llama-{dtype}")
    commit = copied(tmp_path / "llama", tmp_path / "base")
    ours, _ = load_ours(tmp_path / "base")
    assert dtype == "bfloat16" or differ(ours, theirs) < 1e-4
    import_model(open_storage(str(tmp_path / "llama")), open_storage(str(tmp_path / "run")), print)
    uri = f"s3://{BUCKET}/{dtype}"
    assert copied(f"s3://{BUCKET}/llama-{dtype}", f"{uri}/base") == commit
    assert copied(f"s3://{BUCKET}/none", f"{uri}/base") == commit
    assert copied(tmp_path / "run", f"{uri}/of-a-run").files == commit.files
    assert copied(tmp_path / "base", f"{uri}/of-a-copy").files == commit.files


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def test_a_torn_copy_is_made_anew(llama: Path, tmp_path: Path) -> None:
    commit = copied(llama, tmp_path / "base")
    torn = tmp_path / "base" / FIRST
    (torn / COMMIT).unlink()
    flip(0.5)(torn / "__0_0.distcp")
    (torn / "__0_9.distcp").write_bytes(b"half")
    assert copied(llama, tmp_path / "base") == commit
    assert {path.name for path in torn.iterdir()} == {*commit.files, COMMIT}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", COMMIT])
def test_a_damaged_copy_is_refused_and_left(
    llama: Path, tmp_path: Path, name: str, damage: str
) -> None:
    copied(llama, tmp_path / "base")
    file = tmp_path / "base" / FIRST / name
    DAMAGES[damage](file)
    if (name, damage) == (COMMIT, "missing"):  # as after a crash
        copied(llama, tmp_path / "base")
        return
    before = sorted((tmp_path / "base").rglob("*"))
    with pytest.raises(CorruptError, match=rf"{name}.* restore .*base from a copy"):
        copied(llama, tmp_path / "base")
    assert sorted((tmp_path / "base").rglob("*")) == before


def test_shape_and_tokenizer_are_the_source_s_whatever_it_is(
    undisturbed: Outcome, small_corpus: Path, tmp_path: Path
) -> None:
    run = Path(undisturbed.config.run.directory, "small")
    export(open_storage(str(run)), open_storage(str(tmp_path / "model")), print)
    import_model(open_storage(str(tmp_path / "model")), open_storage(str(tmp_path / "run")), print)
    places = [open_storage(str(place)) for place in (run, tmp_path / "model", tmp_path / "run")]
    shapes = [shape_of(place) for place in places]
    assert shapes == [Model.model_validate(undisturbed.config.model.identity())] * 3
    for place in places:
        assert tokenizer_of(place).files() == {TOKENIZER: (small_corpus / TOKENIZER).read_bytes()}


def test_what_is_no_source_is_refused(llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, told in ((tmp_path / "none", "is not there: expected"), (empty, "no checkpoint")):
        source = open_storage(str(place))
        for action in (shape_of, tokenizer_of):
            assert told in (refusal(action, source) or "")
        with pytest.raises(PanthalassaError, match=told):
            copied(place, tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert f"{TOKENIZER} is missing" in (refusal(tokenizer_of, open_storage(str(llama))) or "")
    import_model(open_storage(str(llama)), open_storage(str(tmp_path / "run")), print)
    missing = refusal(tokenizer_of, open_storage(str(tmp_path / "run"))) or ""
    assert f"imported/{TOKENIZER} is missing" in missing
