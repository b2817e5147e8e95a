"""A run goes on from the newest checkpoint that is what was written; what is not is set aside."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoints import DAMAGES, refusal, save
from ranks import TinyRun, tiny
from s3 import BUCKET, Server

from panthalassa.config import Config
from panthalassa.storage import Storage, open_storage
from panthalassa.train import restore
from panthalassa.train.checkpoint import COMMIT, State

OLD, NEW = "step-00000003", "step-00000004"
FILES = [".metadata", *(f"__{rank}_{n}.distcp" for rank in range(2) for n in range(3))]


def save_two(config: Config, folder: str) -> list[float]:
    """Checkpoints after three and four steps; the losses of all steps."""
    run, storage = TinyRun(config), open_storage(folder)
    losses = []
    for step in range(6):
        if step in (3, 4):
            save(run, storage, step)
        losses.append(run.step(step)[0])
    return losses


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run's folder with two checkpoints of two ranks, and its losses."""
    folder = tmp_path_factory.mktemp("run")
    return folder, ranks(2, save_two, tiny(), str(folder))[0]


def resumed(config: Config, storages: list[Storage], staging: str) -> list[Any]:
    """For each: the checkpoint, what was said on rank 0, and the next step's loss; or the refusal."""
    found: list[Any] = []

    def one(storage: Storage) -> None:
        run, said = TinyRun(config), []
        verified = restore.resume(storage, staging, said.append)
        if verified is None:
            found.append((None, said, None))
            return
        commit = verified.load(State(run.model, run.optimizer))
        found.append((verified.name, said, run.step(commit.step)[0]))

    for storage in storages:
        message = refusal(one, storage)
        if message is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_one_is_taken_and_the_damaged_one_set_aside(
    ranks: Any, saved: tuple[Path, list[float]], tmp_path: Path, damage: str
) -> None:
    folder, losses = saved
    names = [*FILES, COMMIT]
    copies = [Path(shutil.copytree(folder, tmp_path / name)) for name in names]
    for copy, name in zip(copies, names, strict=True):
        DAMAGES[damage](copy / NEW / name)
    before = [sorted(path.name for path in (copy / NEW).iterdir()) for copy in copies]
    storages = [open_storage(str(copy)) for copy in copies]
    ranked = ranks(2, resumed, tiny("run.seed=99"), storages, str(tmp_path))
    for rank, answers in enumerate(ranked):
        for copy, name, (found, said, loss), files in zip(
            copies, names, answers, before, strict=True
        ):
            assert found == OLD, name
            assert loss == pytest.approx(losses[3], abs=1e-5)
            assert any(str(copy / NEW) in text for text in said) == (rank == 0)
            if (name, damage) == (COMMIT, "missing"):  # as after a crash: nobody can tell
                assert sorted(path.name for path in (copy / NEW).iterdir()) == files
                continue
            assert any(str(copy / NEW / name) in text for text in said) == (rank == 0)
            aside = copy / f"corrupt-{NEW}"
            assert sorted(path.name for path in aside.iterdir()) == files
            assert not (copy / NEW).exists()


def test_when_all_are_damaged_it_says_so_and_touches_nothing(
    ranks: Any, saved: tuple[Path, list[float]], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    DAMAGES["bit flipped"](copy / OLD / "__1_0.distcp")
    DAMAGES["truncated"](copy / NEW / COMMIT)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for (message,) in ranks(2, resumed, tiny(), [open_storage(str(copy))], str(tmp_path)):
        assert f"no checkpoint of {copy} can be used" in message
        assert str(copy / OLD / "__1_0.distcp") in message
        assert str(copy / NEW / COMMIT) in message
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_another_format_stops_the_run_and_is_not_set_aside(
    ranks: Any, saved: tuple[Path, list[float]], tmp_path: Path
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "run")
    (copy / NEW / COMMIT).write_text('{"format": 2}')
    for (message,) in ranks(2, resumed, tiny(), [open_storage(str(copy))], str(tmp_path)):
        assert "has format 2" in message
    assert (copy / NEW).exists()


def test_a_new_run_has_nothing_to_go_on_from(ranks: Any, tmp_path: Path) -> None:
    answers = ranks(2, resumed, tiny(), [open_storage(str(tmp_path / "new"))], str(tmp_path))
    assert answers == [[(None, [], None)]] * 2


@pytest.mark.parametrize("damage", ["bit flipped", "truncated", "missing"])
def test_in_object_storage_as_well(
    ranks: Any,
    server: Server,
    s3: str,
    saved: tuple[Path, list[float]],
    tmp_path: Path,
    damage: str,
) -> None:
    run = server.folder / BUCKET / damage.replace(" ", "-")
    shutil.copytree(saved[0], run)
    DAMAGES[damage](run / NEW / "__1_1.distcp")
    uri = f"s3://{BUCKET}/{run.name}"
    answers = ranks(2, resumed, tiny(), [open_storage(uri)], str(tmp_path))
    for rank, ((found, said, loss),) in enumerate(answers):
        assert found == OLD
        assert any(f"{uri}/{NEW}/__1_1.distcp" in text for text in said) == (rank == 0)
        assert loss == pytest.approx(saved[1][3], abs=1e-5)
    assert {path.name for path in run.iterdir()} == {OLD, f"corrupt-{NEW}"}
    left = len(FILES) + 1 - (damage == "missing")
    assert len(list((run / f"corrupt-{NEW}").iterdir())) == left
    assert [list(folder.iterdir()) for folder in tmp_path.iterdir()] == [[]]
