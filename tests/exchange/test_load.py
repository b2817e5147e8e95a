"""A model that is opened says what its run or folder says, and what can not be opened is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import flip
from llama import KINDS, edit_json, load_ours, save_llama
from s3 import BUCKET, Server

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import PanthalassaError
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import Opened, open_model
from panthalassa.model.generate import generate_batch
from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import COMMIT
from panthalassa.train.run import Outcome

CPU = torch.device("cpu")
PROMPTS = [[5, 17, 300], [9], [44, 3, 2, 1, 7, 80, 250, 11]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sea, the sea and the land"] * 3, 320)


def opened(place: Path | str, dtype: torch.dtype | None = None) -> Opened:
    return open_model(open_storage(str(place)), CPU, dtype, tell=print)


def listed(folder: Path) -> None:
    """Write the SHA-256 of a folder's files."""
    names = sorted(path.name for path in folder.iterdir())
    found = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(found.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_unequal_length_are_continued_as_transformers_does(
    kind: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    theirs = save_llama(tmp_path / "model", **KINDS[kind])
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    found = opened(tmp_path / "model")
    assert generate_batch(found.model, PROMPTS, 50) == [
        theirs.generate(torch.tensor([ids]), max_new_tokens=50, do_sample=False, eos_token_id=-1)[
            0, len(ids) :
        ].tolist()
        for ids in PROMPTS
    ]
    assert found.length == 128


def test_a_folder_and_the_run_that_was_imported_from_it_are_the_same(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_llama(tmp_path / "model", "bfloat16", tie_word_embeddings=True)
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    import_model(open_storage(str(tmp_path / "model")), open_storage(str(tmp_path / "run")), print)
    folder, run = opened(tmp_path / "model"), opened(tmp_path / "run")
    expected, _ = load_ours(tmp_path / "run")
    for found in (folder, run):
        assert found.length == 128
        assert not found.model.training
        assert found.model.head.output.weight is found.model.embedding.weight
        for (name, parameter), (_, other) in zip(
            found.model.named_parameters(), expected.named_parameters(), strict=True
        ):
            assert parameter.dtype == torch.bfloat16
            assert not parameter.requires_grad
            assert torch.equal(parameter.float(), other), name
    assert opened(tmp_path / "run", torch.float32).model.embedding.weight.dtype == torch.float32
    commit = json.loads((tmp_path / "run" / "step-00000000" / COMMIT).read_text())
    assert run.digest == commit["sha256"]
    assert run.name == f"{tmp_path}/run, step-00000000"


def test_a_digest_is_that_of_the_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    digest = opened(tmp_path / "model").digest
    listed(tmp_path / "model")
    assert opened(tmp_path / "model").digest == digest
    (tmp_path / "model" / "SHA256SUMS").unlink()
    flip(0.9)(sorted((tmp_path / "model").glob("*.safetensors"))[1])
    assert opened(tmp_path / "model").digest != digest


def test_a_run_and_its_export_say_the_same(undisturbed: Outcome, tmp_path: Path) -> None:
    run = Path(undisturbed.config.run.directory, "small")
    export(open_storage(str(run)), open_storage(str(tmp_path / "out")), print)
    first, second = opened(run), opened(tmp_path / "out")
    assert first.tokenizer.to_bytes() == second.tokenizer.to_bytes()
    text = "kate mori 海"
    assert first.tokenizer.encode(text) == second.tokenizer.encode(text)
    assert first.length == second.length == 64
    assert first.notice(64) is None
    assert "texts of up to 65 tokens" in str(first.notice(65))
    prompt = [0, *first.tokenizer.encode("kate")]
    assert generate_batch(first.model, [prompt], 30) == generate_batch(second.model, [prompt], 30)


def test_a_folder_in_object_storage_is_opened(
    server: Server, s3: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_llama(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    listed(tmp_path / "model")
    shutil.copytree(tmp_path / "model", server.folder / BUCKET / "models" / "llama")
    here, there = opened(tmp_path / "model"), opened(f"s3://{BUCKET}/models/llama")
    assert here.digest == there.digest
    for parameter, other in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert torch.equal(parameter, other)


def refusal(place: Path) -> str:
    with pytest.raises(PanthalassaError) as error:
        opened(place)
    assert str(place) in str(error.value)
    return str(error.value)


def test_what_can_not_be_opened_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert "is not there: expected a run such as" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint" in refusal(tmp_path / "empty")
    model = tmp_path / "model"
    save_llama(model)
    assert "tokenizer.json is missing" in refusal(model)
    (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unigram"}}')
    assert "is not a tokenizer" in refusal(model)
    words = ["seas and lands under another wind", "over waters without further notice"]
    (model / "tokenizer.json").write_bytes(Tokenizer.train(words * 3, 340).to_bytes())
    assert "has 329 tokens, and the model 320" in refusal(model)
    (model / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    listed(model)
    flip(0.5)(sorted(model.glob("*.safetensors"))[0])
    assert "is corrupt: its SHA-256 is" in refusal(model)
    edit_json(model / "config.json", model_type="mistral")
    assert "config.json is corrupt" in refusal(model)


def test_an_import_without_a_tokenizer_can_not_be_asked(tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    import_model(open_storage(str(tmp_path / "model")), open_storage(str(tmp_path / "run")), print)
    assert "imported/tokenizer.json is missing" in refusal(tmp_path / "run")


PROGRAM = """
import sys
from pathlib import Path
import torch
from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6

small, large = sys.argv[1:]
for place in (small, large):
    open_model(open_storage(place), torch.device("cpu"))
    print(peak())
"""


def test_a_model_is_in_memory_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """160 MB of weights, and not twice as much."""
    save_llama(tmp_path / "small")
    save_llama(tmp_path / "large", vocab_size=40_000, hidden_size=1000, num_hidden_layers=1,
               tie_word_embeddings=True)  # fmt: skip
    for size in ("small", "large"):
        (tmp_path / size / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    places = (str(tmp_path / "small"), str(tmp_path / "large"))
    command = [sys.executable, "-c", PROGRAM, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    before, after = map(float, done.stdout.split())
    weights = sum(path.stat().st_size for path in (tmp_path / "large").glob("*.safetensors")) / 1e6
    assert weights > 160
    assert weights < after - before < weights + 48
