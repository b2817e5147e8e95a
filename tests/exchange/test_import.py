"""A Llama model of transformers becomes a run, says the same there, and comes back byte for byte."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import Result
from llama import KINDS, SCALED, differ, edit_json, load_llama, load_ours, save_llama, tensors
from s3 import BUCKET, Server
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.errors import ConfigError, CorruptError
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.model.generate import generate
from panthalassa.storage import open_storage


def imported(source: Path | str, run: Path | str) -> None:
    import_model(open_storage(str(source)), open_storage(str(run)), print)


def list_hashes(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    command = ["sha256sum", *names]
    found = subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(found.stdout)


def exported(run: Path | str, folder: Path | str, shard: int = 5 * 10**9) -> None:
    export(open_storage(str(run)), open_storage(str(folder)), print, shard=shard)


def test_a_tokenizer_that_can_not_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_llama(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer.json is no JSON"):
        imported(tmp_path / "source", tmp_path / "run")
    (tmp_path / "source" / "tokenizer.json").unlink()
    with (tmp_path / "source" / "tokenizer_config.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigError, match=r"tokenizer_config.json has 16,777,217 bytes"):
        imported(tmp_path / "source", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_the_same_and_comes_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    theirs = save_llama(tmp_path / "source", **KINDS[kind])
    imported(tmp_path / "source", tmp_path / "run")
    ours, _ = load_ours(tmp_path / "run")
    assert differ(ours, theirs) < 1e-4
    prompt = [5, 17, 300]
    ids = torch.tensor([prompt])
    said = theirs.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=-1)[0, 3:].tolist()
    assert generate(ours, prompt, 60, 0.0, seed=0, stop_ids=()) == said
    assert len(set(said)) > 3
    exported(tmp_path / "run", tmp_path / "back", shard=100_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert tensors(tmp_path / "back") == tensors(tmp_path / "source")
    assert differ(ours, load_llama(tmp_path / "back")) < 1e-4


def test_halves_come_back_byte_for_byte_over_object_storage(
    server: Server, s3: str, tmp_path: Path
) -> None:
    """Also with a list of hashes, and a second matrix for the output that is tied to the first."""
    save_llama(tmp_path / "source", "bfloat16", tie_word_embeddings=True)
    (tmp_path / "source" / "tokenizer_config.json").write_text("{}")
    list_hashes(tmp_path / "source")
    shutil.copytree(tmp_path / "source", server.folder / BUCKET / "source")
    run, back = f"s3://{BUCKET}/runs/llama", f"s3://{BUCKET}/back"
    found = import_model(open_storage(f"s3://{BUCKET}/source"), open_storage(run), print)
    assert found.verified
    exported(run, back, shard=100_000)
    files = server.folder / BUCKET / "back"
    assert tensors(files) == tensors(tmp_path / "source")
    assert (files / "tokenizer_config.json").read_text() == "{}"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=files, check=True)
    assert json.loads((files / "config.json").read_text())["max_position_embeddings"] == 128


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model_type", "mistral", "model_type is 'mistral', and only 'llama'"),
        ("architectures", ["LlamaForTokenClassification"], "architectures is"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', and only 'silu'"),
        ("attention_bias", True, "attention_bias is True"),
        ("mlp_bias", True, "mlp_bias is True"),
        ("quantization_config", {"bits": 4}, "quantization_config is"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_scaling.rope_type is 'yarn'"),
        ("rope_scaling", {"rope_type": "llama3"}, "rope_scaling.factor is missing"),
        (
            "rope_scaling",
            {**SCALED, "high_freq_factor": 1},
            "low_turns=1.0 is not below high_turns",
        ),
        ("num_key_value_heads", 3, "heads=4 is not a multiple of kv_heads=3"),
        ("hidden_size", None, "hidden_size is missing"),
        ("num_hidden_layers", "many", "num_hidden_layers is 'many'"),
        ("num_hidden_layers", 2, "model.layers.2"),
        ("num_hidden_layers", 4, "model.layers.3.input_layernorm.weight is missing"),
        ("intermediate_size", 97, "makes it [97, 64]"),
        ("tie_word_embeddings", True, None),
    ],
)
def test_another_architecture_is_refused_with_the_field_that_differs(
    source: Path, tmp_path: Path, field: str, value: object, told: str | None
) -> None:
    shutil.copytree(source, tmp_path / "source")
    edit_json(tmp_path / "source" / "config.json", rope_parameters=None)
    edit_json(tmp_path / "source" / "config.json", **{field: value})
    if told is None:  # a second matrix for the output says nothing then
        imported(tmp_path / "source", tmp_path / "run")
        return
    with pytest.raises(ConfigError) as refusal:
        imported(tmp_path / "source", tmp_path / "run")
    assert told in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def test_both_commands_tell_what_they_did_and_what_they_refuse(
    source: Path, tmp_path: Path
) -> None:
    def said(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    run, back = tmp_path / "runs" / "llama", tmp_path / "back"
    first = said("import", source, run)
    assert first.exit_code == 0, first.output
    assert "145,856 parameters" in first.output
    assert "not all are in a SHA256SUMS" in first.output
    second = said("export", run, back, "--dtype", "bf16", "--shard-gigabytes", "1e-4")
    assert second.exit_code == 0, second.output
    assert f"{back}, from step-00000000" in second.output
    assert json.loads((back / "config.json").read_text())["dtype"] == "bfloat16"
    assert "The weights were imported" in (back / "README.md").read_text()
    for again in (("import", source, run), ("export", run, back)):
        refused = said(*again)
        assert refused.exit_code == 1
        assert refused.stderr.startswith("panthalassa: ")


def test_damaged_and_foreign_files_are_refused_and_nothing_is_written(
    source: Path, tmp_path: Path
) -> None:
    def refused(kind: type[Exception], run: str = "run") -> str:
        with pytest.raises(kind) as refusal:
            imported(copy, tmp_path / run)
        return str(refusal.value)

    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    weights = sorted(copy.glob("*.safetensors"))[1]
    list_hashes(copy)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{weights.name} is corrupt" in refused(CorruptError)
    (copy / "SHA256SUMS").unlink()
    os.truncate(weights, len(content) - 1)
    assert "it was cut off" in refused(ConfigError)
    weights.write_bytes(b"\xff" * 100)
    assert "is no file of safetensors" in refused(ConfigError)
    weights.unlink()
    assert f"{weights.name} is missing" in refused(ConfigError)
    edit_json(copy / "model.safetensors.index.json", weight_map={"a": "../a.safetensors"})
    assert "does not name files of this folder" in refused(ConfigError)
    (copy / "model.safetensors.index.json").unlink()
    assert "holds neither model.safetensors nor" in refused(ConfigError)
    (copy / "config.json").write_text("[]")
    assert "is no JSON of a model's configuration" in refused(ConfigError)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert "is not empty: there is thesis.txt" in refused(ConfigError, "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_an_import_that_was_killed_is_done_again_and_a_whole_one_is_not(
    source: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "run" / "step-00000000"
    torn.mkdir(parents=True)
    (torn / "__9_7.distcp").write_bytes(b"half")
    imported(source, tmp_path / "run")
    assert not (torn / "__9_7.distcp").exists()
    with pytest.raises(ConfigError, match=r"is not empty: there is step-00000000/checkpoint.json"):
        imported(source, tmp_path / "run")
