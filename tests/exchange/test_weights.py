"""Weights of a checkpoint are put together without ranks, whatever they were, in little memory."""

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DAMAGES, refusal, save
from llama import load_ours
from ranks import TinyRun, tiny, whole
from s3 import BUCKET, FaultyProxy, Server

from panthalassa.config import Config
from panthalassa.errors import CheckpointError
from panthalassa.exchange import weights
from panthalassa.exchange.weights import newest_good
from panthalassa.model.transformer import parameters_by_name
from panthalassa.storage import open_storage
from panthalassa.train import restore, tensor_files
from panthalassa.train.checkpoint import State

NAME = "step-00000001"


def save_one(config: Config, folder: str) -> dict[str, torch.Tensor]:
    run = TinyRun(config)
    run.step(0)
    save(run, open_storage(folder), 1)
    return {name: whole(parameter).clone() for name, parameter in parameters_by_name(run.model)}


def save_mixed(config: Config, folder: str) -> dict[str, torch.Tensor]:
    """With weights and moments in one file, as earlier versions wrote it."""
    tensor_files.KINDS = ("",)
    return save_one(config, folder)


def loaded(config: Config, folder: str) -> dict[str, torch.Tensor]:
    run = TinyRun(config)
    restore.load(open_storage(folder), NAME, State(run.model, run.optimizer))
    return {name: whole(parameter) for name, parameter in parameters_by_name(run.model)}


def read(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_ours(folder)[0].named_parameters())


def test_a_file_of_weights_and_moments_is_read_as_well(ranks: Any, tmp_path: Path) -> None:
    expected = ranks(2, save_mixed, tiny(), str(tmp_path))[0]
    assert len(list((tmp_path / NAME).glob("*.distcp"))) == 2
    found = ranks(1, loaded, tiny("run.seed=99"), str(tmp_path))[0]
    for weights_ in (found, read(tmp_path)):
        assert weights_.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(weights_[name], tensor), name


def test_only_files_of_weights_are_verified_and_downloaded(
    ranks: Any, server: Server, s3: str, tmp_path: Path
) -> None:
    expected = ranks(2, save_one, tiny(), str(tmp_path / "run"))[0]
    moments = [tmp_path / "run" / NAME / f"__{rank}_{n}.distcp" for rank in (0, 1) for n in (1, 2)]
    for file in moments:
        DAMAGES["missing"](file)
    for name, tensor in read(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name
    shutil.copytree(tmp_path / "run", server.folder / BUCKET / "run")
    with FaultyProxy(s3) as proxy:
        storage = open_storage(f"s3://{BUCKET}/run", endpoint=proxy.url)
        with newest_good(storage, str(tmp_path / "staging"), print) as found:
            assert found.files() == {"__0_0.distcp", "__1_0.distcp"}
            assert torch.equal(
                torch.cat(list(found.blocks("embedding.weight", (256, 32)))),
                expected["embedding.weight"],
            )
        for name in (".metadata", *found.files()):
            assert proxy.downloads(f"{BUCKET}/run/{NAME}/{name}") == 1
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        for damage, spoil in DAMAGES.items():
            copy = Path(shutil.copytree(tmp_path / "run", tmp_path / f"{damage} {name}"))
            spoil(copy / NAME / name)
            message = refusal(read, copy)
            assert message is not None
            assert f"{copy / NAME / name} is " in message


def test_parts_of_tensor_and_data_parallel_ranks_make_whole_tensors(
    ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("parallel.tp_size=2", "model.tied_embeddings=true")
    expected = ranks(4, save_one, config, str(tmp_path))[0]
    with newest_good(open_storage(str(tmp_path)), None, print) as found:
        for (name, tensor), block in product(expected.items(), (1, 700, weights.BLOCK)):
            monkeypatch.setattr(weights, "BLOCK", block)
            rows = list(found.blocks(name, tuple(tensor.shape)))
            assert torch.equal(torch.cat(rows).view_as(tensor), tensor), name
            assert all(part.numel() * 4 <= max(block, tensor[0].numel() * 4) for part in rows)
        with pytest.raises(CheckpointError, match=r"holds no head\.output\.weight"):
            found.dtype("head.output.weight")
        with pytest.raises(CheckpointError, match=r"is \[256, 32\], expected \[256, 31\]"):
            next(found.blocks("embedding.weight", (256, 31)))


PROGRAM = """
import resource, sys
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.storage import open_storage
from panthalassa.train import restore, tensor_files
from panthalassa.train.checkpoint import State

NAME = "step-00000001"

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

small, large, folder = sys.argv[1:]
for source in (small, large):
    run = open_storage(f"{folder}/run-{len(source)}")
    import_model(open_storage(source), run, print)
    imported = peak()
    export(run, open_storage(f"{folder}/out-{len(source)}"), print, dtype="bf16")
    print(imported, peak())
"""


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    """A matrix of 160 MB is imported and exported with less than a third of that."""
    from llama import save_llama

    save_llama(tmp_path / "small")
    sizes = {"vocab_size": 40_000, "hidden_size": 1000, "num_hidden_layers": 1}
    save_llama(tmp_path / "larger", tie_word_embeddings=True, **sizes)
    places = (tmp_path / "small", tmp_path / "larger", tmp_path)
    command = [sys.executable, "-c", PROGRAM, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (_, before), (imported, exported) = (
        map(float, line.split()) for line in done.stdout.splitlines()
    )
    assert imported - before < 48
    assert exported - before < 48
