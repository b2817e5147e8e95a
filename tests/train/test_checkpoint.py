"""A checkpoint is the whole state of a run for any number of ranks, or it is refused by name."""

import hashlib
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DAMAGES, EVALUATIONS, phases_of, refusal, save
from ranks import TinyRun, tiny
from s3 import BUCKET, FaultyProxy
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.storage import Storage, open_storage
from panthalassa.train import checkpoint, restore
from panthalassa.train.checkpoint import COMMIT, Commit, State

SAVED_AT = 3
STEP = "step-00000003"
FILES = [".metadata", *(f"__{rank}_{n}.distcp" for rank in range(4) for n in range(3))]


def load(run: TinyRun, storage: Storage, name: str = STEP) -> Commit:
    state = State(run.model, run.optimizer)
    model, plan = run.config.model.identity(), phases_of(run.config)
    commit = checkpoint.read_commit(storage, name)
    checkpoint.phases_from(storage, commit, model, plan, may_change=False)
    return restore.load(storage, name, state)


def interrupted(config: Config, folder: str) -> tuple[list[float], list[float]]:
    """Three steps, a checkpoint, three more: their losses, and random numbers behind it."""
    run = TinyRun(config)
    for step in range(SAVED_AT):
        run.step(step)
    torch.manual_seed(77)
    save(run, open_storage(folder), SAVED_AT)
    drawn = torch.rand(3).tolist()
    return [run.step(step)[0] for step in range(SAVED_AT, SAVED_AT + 3)], drawn


def continued(config: Config, storage: Storage) -> tuple[Commit, list[float], list[float]]:
    run = TinyRun(config)
    commit = load(run, storage)
    drawn = torch.rand(3).tolist()
    steps = range(commit.step, commit.step + 3)
    return commit, [run.step(step)[0] for step in steps], drawn


def four_ranks(*overrides: str) -> Config:
    return tiny("parallel.tp_size=2", *overrides)


@pytest.fixture(scope="module")
def saved(
    ranks: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], list[float]]:
    """A run's folder with a checkpoint of 2 x 2 ranks; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("run")
    losses, drawn = ranks(4, interrupted, four_ranks(), str(folder))[0]
    return folder, losses, drawn


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_run_goes_on_as_if_nothing_had_happened_on_any_mesh(
    ranks: Any, saved: tuple[Path, list[float], list[float]], dp: int, tp: int
) -> None:
    folder, losses, drawn = saved
    # Other initial weights: whatever is not loaded shows.
    config = tiny(f"parallel.tp_size={tp}", "run.seed=99")
    for commit, found, numbers in ranks(dp * tp, continued, config, open_storage(str(folder))):
        assert found == pytest.approx(losses, abs=1e-5)
        assert numbers == drawn
        assert (commit.step, commit.samples) == (3, 12)
        assert commit.evaluations == EVALUATIONS


def test_a_tied_and_checkpointed_model_goes_on_as_well(ranks: Any, tmp_path: Path) -> None:
    mode = "parallel.activation_checkpointing="
    config = four_ranks("model.tied_embeddings=true", f"{mode}full")
    losses, _ = ranks(4, interrupted, config, str(tmp_path))[0]
    other = tiny("model.tied_embeddings=true", "run.seed=99", f"{mode}none")
    ((_, found, _),) = ranks(1, continued, other, open_storage(str(tmp_path)))
    assert found == pytest.approx(losses, abs=1e-5)


def test_every_file_is_in_the_commit_with_its_hash(saved: tuple[Path, Any, Any]) -> None:
    folder = saved[0] / STEP
    commit = json.loads((folder / COMMIT).read_text())
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, COMMIT]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    assert commit["files"] == hashes


def load_all(config: Config, folders: list[str]) -> list[str | None]:
    run = TinyRun(config)
    return [refusal(load, run, open_storage(folder)) for folder in folders]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_on_every_rank(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path, damage: str
) -> None:
    copies = []
    for name in FILES:
        copies.append(shutil.copytree(saved[0], tmp_path / name))
        DAMAGES[damage](copies[-1] / STEP / name)
    for messages in ranks(2, load_all, tiny(), [str(copy) for copy in copies]):
        for copy, name, message in zip(copies, FILES, messages, strict=True):
            assert message is not None, name
            assert str(copy / STEP / name) in message
            if damage != "missing":
                assert "corrupt" in message


@pytest.mark.parametrize("damage", ["first bit flipped", "truncated", "empty", "missing"])
def test_a_torn_commit_is_named(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path, damage: str
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    DAMAGES[damage](copy / STEP / COMMIT)
    for (message,) in ranks(2, load_all, tiny(), [str(copy)]):
        assert message is not None
        assert str(copy / STEP / COMMIT) in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.layers=3", "model.layers is 2 there, 3 here"),
        ("model.tied_embeddings=true", "model.tied_embeddings is False there, True here"),
        ("train.global_batch=8", "global_batch is 4 there, 8 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_difference(
    ranks: Any, saved: tuple[Path, Any, Any], override: str, named: str
) -> None:
    for (message,) in ranks(2, load_all, tiny(override), [str(saved[0])]):
        assert message is not None
        assert named in message
        assert "run.name" in message


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def put(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and its hash in the commit: nobody can tell by the hash."""
    (folder / name).write_bytes(content)
    commit = Commit.model_validate_json((folder / COMMIT).read_text())
    files = {**commit.files, name: hashlib.sha256(content).hexdigest()}
    sealed = commit.model_copy(update={"files": files}).sealed()  # unchecked, as an attacker's
    (folder / COMMIT).write_text(sealed.model_dump_json())


def test_an_index_that_runs_code_is_refused_and_runs_nothing(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    marker = tmp_path / "executed"
    put(copy / STEP, ".metadata", pickle.dumps(Malicious(f"touch {marker}")))
    for (message,) in ranks(2, load_all, tiny(), [str(copy)]):
        assert message is not None
        assert ".metadata names posix.system" in message
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2])])
def test_an_index_that_is_none_is_refused_on_every_rank(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path, content: bytes
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    put(copy / STEP, ".metadata", content)
    for (message,) in ranks(2, load_all, tiny(), [str(copy)]):
        assert message is not None
        assert str(copy / STEP) in message


def test_an_index_that_leads_to_files_without_a_hash_is_refused(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    index = (copy / STEP / ".metadata").read_bytes()
    put(copy / STEP, ".metadata", index.replace(b"__1_0.distcp", b"__9_0.distcp"))
    for (message,) in ranks(2, load_all, tiny(), [str(copy)]):
        assert message is not None
        assert "names __9_0.distcp, which the commit does not" in message


def test_a_commit_that_names_files_elsewhere_is_refused(
    ranks: Any, saved: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    put(copy / STEP, "../outside", b"content")
    for (message,) in ranks(2, load_all, tiny(), [str(copy)]):
        assert message is not None
        assert str(copy / STEP / COMMIT) in message


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    """A file system of 1 MiB."""
    return make_disk("1m")


def save_twice(config: Config, folder: str) -> tuple[str | None, list[str]]:
    """A save that fits, steps, and one that does not: its refusal, and what is on the disk."""
    run, storage = TinyRun(config), open_storage(folder)
    for step in range(SAVED_AT):
        run.step(step)
    save(run, storage, SAVED_AT)
    dist.barrier()
    if dist.get_rank() == 0:  # leave room for half a checkpoint
        used = sum(file.stat().st_size for file in Path(folder, STEP).iterdir())
        free = shutil.disk_usage(folder).free
        Path(folder, "ballast").write_bytes(bytes(free - used // 2))
    dist.barrier()
    message = refusal(save, run, storage, SAVED_AT + 1)
    dist.barrier()
    return message, storage.folders()


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_torn(
    ranks: Any, saved: tuple[Path, Any, Any], small_disk: Path
) -> None:
    for message, folders in ranks(2, save_twice, tiny(), str(small_disk)):
        assert message is not None
        assert str(small_disk / "step-00000004") in message
        assert "Make room" in message
        assert folders == [STEP]
    ((_, found, _),) = ranks(1, continued, tiny("run.seed=99"), open_storage(str(small_disk)))
    assert found == pytest.approx(saved[1], abs=1e-5)


def save_where_one_can_not(config: Config, folder: str) -> tuple[str | None, list[str]]:
    run, storage = TinyRun(config), open_storage(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    message = refusal(save, run, storage, SAVED_AT)
    dist.barrier()
    return message, storage.folders()


def test_one_rank_that_can_not_write_fails_the_save_on_all(ranks: Any, tmp_path: Path) -> None:
    for message, folders in ranks(2, save_where_one_can_not, tiny(), str(tmp_path)):
        assert message is not None
        assert str(tmp_path / STEP) in message
        assert "Make room" in message
        assert folders == []


def interrupted_there(config: Config, storage: Storage, staging: str) -> list[float]:
    run = TinyRun(config)
    for step in range(SAVED_AT):
        run.step(step)
    save(run, storage, SAVED_AT, staging)
    return [run.step(step)[0] for step in range(SAVED_AT, SAVED_AT + 3)]


def continued_there(config: Config, storage: Storage, staging: str) -> list[float]:
    run = TinyRun(config)
    restore.load(storage, STEP, State(run.model, run.optimizer), staging)
    return [run.step(step)[0] for step in range(SAVED_AT, SAVED_AT + 3)]


def test_a_checkpoint_in_object_storage_is_read_by_other_ranks(
    ranks: Any, s3: str, tmp_path: Path
) -> None:
    """The ranks share the download, and nothing stays in the staging folder."""
    with FaultyProxy(s3) as proxy:
        storage = open_storage(f"s3://{BUCKET}/run", endpoint=proxy.url)
        losses = ranks(4, interrupted_there, four_ranks(), storage, str(tmp_path))[0]
        assert [name for name, _ in storage.below(STEP).files()] == [*FILES, COMMIT]
        for found in ranks(2, continued_there, tiny("run.seed=99"), storage, str(tmp_path)):
            assert found == pytest.approx(losses, abs=1e-5)
        for name in FILES:
            assert proxy.downloads(f"{BUCKET}/run/{STEP}/{name}") == 1
    (staging,) = tmp_path.iterdir()
    assert list(staging.iterdir()) == []
