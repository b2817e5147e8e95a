"""What is exported of a run is what its ranks had, with tokenizer, hashes and an honest card."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import flip
from llama import differ, load_llama, tensors, transformers
from ranks import TinyRun
from udhr import folder as udhr_folder
from udhr import read_declarations

from panthalassa.config import Config
from panthalassa.corpus.manifest import read_manifest
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.errors import CheckpointError, ConfigError, PanthalassaError
from panthalassa.exchange import export as module
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.finetune.chat import Message, encode_chat, encode_prompt
from panthalassa.model.generate import generate
from panthalassa.model.transformer import Transformer
from panthalassa.storage import open_storage
from panthalassa.train import restore
from panthalassa.train.checkpoint import State
from panthalassa.train.events import Evaluated, Event
from panthalassa.train.run import Outcome, pretrain

NEWEST = "step-00000024"


def exported(run: Path, folder: Path, **options: Any) -> list[str]:
    """Export, and return what was said."""
    said: list[str] = []
    export(open_storage(str(run)), open_storage(str(folder)), said.append, **options)
    return said


def loaded_by_ranks(config: Config, folder: str) -> dict[str, torch.Tensor]:
    run = TinyRun(config)
    restore.load(open_storage(folder), NEWEST, State(run.model, run.optimizer))
    return {name: tensor.full_tensor() for name, tensor in run.model.state_dict().items()}


@pytest.fixture(scope="module")
def run(undisturbed: Outcome) -> Path:
    return Path(undisturbed.config.run.directory, "small")


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "model"
    assert exported(run, place, shard=200_000) == []
    return place


@pytest.fixture(scope="module")
def tokenizers(folder: Path, small_corpus: Path) -> tuple[Tokenizer, Any]:
    """Ours, and that of transformers from the exported files."""
    corpus = open_storage(str(small_corpus))
    return (
        read_tokenizer(corpus, read_manifest(corpus)),
        transformers().AutoTokenizer.from_pretrained(folder),
    )


def test_it_says_in_transformers_what_the_run_says(
    ranks: Any, undisturbed: Outcome, run: Path, folder: Path
) -> None:
    weights = ranks(1, loaded_by_ranks, undisturbed.config, str(run))[0]
    ours, theirs = Transformer(undisturbed.config.model), load_llama(folder)
    ours.load_state_dict(weights)
    assert differ(ours, theirs, length=64) < 1e-4
    prompt = [0, 40, 41, 42]
    said = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
    expected = generate(ours, prompt, 40, 0.0, seed=0, stop_ids=Tokenizer.ends)
    assert [id for id in said[0, 4:].tolist() if id != Tokenizer.eos] == expected
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2


def test_the_list_of_hashes_has_every_file(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert {path.name for path in folder.iterdir()} == listed | {"SHA256SUMS"}


def test_tokens_and_texts_are_the_same_in_transformers(tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tokenizers
    for text in ("kate mori", "  Two  spaces , and\n\n\ttabs ", "don 't .", "Θάλασσα 海 🌊", ""):
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_chats_are_the_same_in_transformers(tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tokenizers
    contents = [
        "kate mori",
        "  def f():\n\treturn 1 \n",
        "Θάλασσα;",
        "ทะเลลึก",
        "海很深。",
        "\u200f\u05d9\u05dd",
        "🌊",
        "",
    ]
    for content in contents:
        chat = [
            Message(role="system", content="Be brief.\n"),
            Message(role="user", content=content),
            Message(role="assistant", content=content[::-1]),
            Message(role="user", content=f"\n\n{content}"),
        ]
        said = [message.model_dump() for message in chat]
        for answering, ids in (
            (False, encode_chat(ours, chat)[0].tolist()),
            (True, encode_prompt(ours, chat)),
        ):
            found = theirs.apply_chat_template(
                said, tokenize=True, add_generation_prompt=answering, return_dict=False
            )
            assert found == ids, content


def test_a_generation_ends_with_the_document_or_the_turn(folder: Path) -> None:
    found = transformers().GenerationConfig.from_pretrained(folder)
    assert found.eos_token_id == [Tokenizer.eos, Tokenizer.turn_end]


def test_declarations_in_all_languages_come_back(tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tokenizers
    declarations = read_declarations(udhr_folder())
    assert len(declarations) > 350
    for declaration in declarations:
        text = "\n".join(declaration.paragraphs[:12])
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos, *ours.encode(text)], declaration.language
        assert theirs.decode(ids, skip_special_tokens=True) == text, declaration.language


def test_the_card_tells_what_the_run_has_on_record(undisturbed: Outcome, folder: Path) -> None:
    _, properties, card = (folder / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(properties)
    assert found["license"] == "apache-2.0"
    assert found["language"] == ["aa", "bb"]
    assert f"{undisturbed.history.ready and undisturbed.history.ready.parameters:,} param" in card
    assert NEWEST in card
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith(("| aa", "| bb"))]
    assert sum(int(row[1].replace(",", "")) for row in rows) == 24 * 16 * 64
    assert f"Held-out loss {undisturbed.history.evaluations[-1].loss:.4f}" in card
    for heading in ("Training", "Energy and carbon", "Hardware", "Licence"):
        assert f"\n## {heading}\n" in card
    assert "no rank had a power source" in card or " kWh " in card
    assert " GB" in card.partition("## Hardware")[2]


def test_the_last_good_checkpoint_is_taken_and_the_rotten_one_named_and_left(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "small"))
    flip(0.5)(copy / NEWEST / "__1_0.distcp")
    before = sorted(copy.rglob("*"))
    said = exported(copy, tmp_path / "model", dtype="bf16", licence="mit")
    assert f"{copy}/{NEWEST}/__1_0.distcp is corrupt" in said[0]
    assert said[-1] == f"the newest good checkpoint is {copy}/step-00000020"
    assert sorted(copy.rglob("*")) == before
    card = (tmp_path / "model" / "README.md").read_text()
    assert "step-00000020" in card
    assert "license: mit" in card
    assert f"{20 * 16:,}" in card
    assert {kind for kind, _ in tensors(tmp_path / "model").values()} == {"torch.bfloat16"}
    for index in copy.glob("step-*/.metadata"):
        flip(0.5)(index)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used"):
        exported(copy, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(PanthalassaError, match="has no checkpoint"):
        exported(tmp_path / "nowhere", tmp_path / "none")


def test_an_export_is_all_or_nothing_and_never_over_something_else(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty: there is thesis.txt"):
        exported(run, target)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    monkeypatch.setattr(module, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        exported(run, target, shard=200_000)
    monkeypatch.undo()
    left = {path.name for path in target.iterdir()}
    assert "export.json" in left
    assert not [name for name in left if name == "SHA256SUMS" or name.endswith(".safetensors")]
    with pytest.raises(ConfigError, match="holds another export that did not end"):
        exported(run, target, dtype="fp16", shard=100_000)
    exported(run, target, shard=200_000)
    assert hashes(target) == hashes(folder)
    with pytest.raises(ConfigError, match="holds an export already"):
        exported(run, target, shard=200_000)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_training_goes_on_from_what_was_imported(
    configure: Callable[..., Config], undisturbed: Outcome, folder: Path, tmp_path: Path
) -> None:
    """Two ranks of a tensor-parallel group begin with the loss that the exported run ended with."""
    import_model(open_storage(str(folder)), open_storage(str(tmp_path / "runs" / "more")), print)
    evaluated: list[Evaluated] = []

    def note(event: Event) -> None:
        if isinstance(event, Evaluated):
            evaluated.append(event)

    config = configure(
        tmp_path, "run.name=more", "train.steps=3", "parallel.tp_size=2", "run.seed=7"
    )
    pretrain(config, note)
    last = undisturbed.history.evaluations[-1]
    assert evaluated[0].step == 0
    assert evaluated[0].loss == pytest.approx(last.loss, abs=1e-4)
    exported(tmp_path / "runs" / "more", tmp_path / "again")
    config_json = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config_json["vocab_size"] == 352
    assert tensors(tmp_path / "again").keys() == tensors(folder).keys()
