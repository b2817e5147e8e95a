"""Workers on Ray give the answers of one process, whatever happens to them, and ask nothing twice."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import LENGTH, TEXTS, save_model
from checkpoints import flip

from panthalassa.config_file import build
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate import engine as module
from panthalassa.evaluate.answering import Answerer
from panthalassa.evaluate.config import Evaluation
from panthalassa.evaluate.engine import Engine, chunks
from panthalassa.evaluate.kept import Kept, key_of
from panthalassa.evaluate.task import Answer, Generation, Likelihood, Likely, Request, Rolling
from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage

REQUESTS: list[Request] = [
    *(Likelihood(f"the cat {number}", end) for number in range(20) for end in TEXTS),
    *(Rolling(text * 9) for text in TEXTS),
    *(Generation(text, (".",), 8) for text in TEXTS),
    Likelihood("the cat 3", TEXTS[0]),
]
UNIQUE = len(set(REQUESTS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("asked") / "model")


@pytest.fixture(scope="module")
def alone(model: Path) -> list[Answer]:
    """The answers of this process, all asked at once."""
    opened = open_model(open_storage(str(model)), torch.device("cpu"))
    return Answerer(opened.model, opened.tokenizer, LENGTH, 4096).answers(REQUESTS)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)


def evaluation(model: Path, output: Path, *overrides: str) -> Evaluation:
    tree = {
        "model": str(model),
        "output": str(output),
        "tasks": [{"name": "choices", "data": "nowhere"}],
        "cluster": {"workers": 2, "cpus_per_worker": 0.5},
    }
    return build(tree, list(overrides), "test", Evaluation)


def ask(config: Evaluation, tell: Callable[[str], None] = lambda line: None) -> list[Answer]:
    with Engine(config, open_storage(config.output), tell) as engine:
        return engine.answers(REQUESTS)


def same(found: list[Answer], expected: list[Answer]) -> bool:
    """Up to the rounding of other batches."""
    return len(found) == len(expected) and all(
        one.greedy == other.greedy
        and one.tokens == other.tokens
        and one.nats == pytest.approx(other.nats, rel=1e-4)
        if isinstance(one, Likely) and isinstance(other, Likely)
        else one == other
        for one, other in zip(found, expected, strict=True)
    )


def kept(output: Path) -> set[Path]:
    return set(output.rglob("*.json"))


def test_answers_are_the_same_for_any_number_of_workers(
    ray_cluster: str, model: Path, alone: list[Answer], tmp_path: Path
) -> None:
    two = ask(evaluation(model, tmp_path / "two"))
    assert same(two, alone)
    assert ask(evaluation(model, tmp_path / "one", "cluster.workers=1")) == two
    small = evaluation(model, tmp_path / "small", "batch_tokens=1")
    assert same(ask(small), alone)
    assert {file.name for file in kept(tmp_path / "one")} == {
        file.name for file in kept(tmp_path / "two")
    }


class Interrupted(Exception):
    pass


def test_an_evaluation_goes_on_and_asks_nothing_twice(
    ray_cluster: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ask(evaluation(model, tmp_path / "whole"))
    config = evaluation(model, tmp_path / "killed")
    monkeypatch.setattr(module, "TOLD_EVERY", 0.0)

    def stop_at_the_fourth(line: str) -> None:
        if line.startswith("32 of "):
            raise Interrupted

    with pytest.raises(Interrupted):
        ask(config, stop_at_the_fourth)
    before = kept(tmp_path / "killed")
    assert len(before) == 4
    times = {file: file.stat().st_mtime_ns for file in before}
    said: list[str] = []
    assert ask(config, said.append) == whole
    assert said[0] == f"{UNIQUE} requests, of which 32 are answered already"
    assert len(kept(tmp_path / "killed")) == len(kept(tmp_path / "whole"))
    assert {file: file.stat().st_mtime_ns for file in before} == times
    assert ask(config, said.append) == whole
    assert (
        said[-1]
        == f"{len(set(REQUESTS))} requests, of which {len(set(REQUESTS))} are answered already"
    )


def test_a_damaged_answer_is_asked_again(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    config = evaluation(model, tmp_path)
    whole = ask(config)
    damaged = sorted(kept(tmp_path))[1]
    flip(0.5)(damaged)
    said: list[str] = []
    assert ask(config, said.append) == whole
    assert f"{damaged} is damaged: its requests are asked again" in said
    assert len(kept(tmp_path)) == len(list(chunks({key_of(r): r for r in REQUESTS})))


def test_what_was_read_in_part_is_counted_also_by_a_command_that_goes_on(
    ray_cluster: str, model: Path, tmp_path: Path
) -> None:
    config = evaluation(model, tmp_path, "cluster.workers=1")
    long = Likelihood("the cat sat on the mat " * 40, " yes")
    for _ in range(2):
        with Engine(config, open_storage(config.output), print) as engine:
            engine.answers([Likelihood("the cat", " sat"), long])
            assert engine.cut == {key_of(long)}


def test_an_answer_of_another_shape_is_asked_again(tmp_path: Path) -> None:
    answers = Kept(open_storage(str(tmp_path)))
    answers.write({"a": "yes", "b": Likely(-1.5, True, 2)}, ["b"])
    for data in (b"[1]", b'{"a": 1}', b"\xff", b'{"answers": {"a": [1]}, "cut": []}'):
        (tmp_path / f"{hashlib.sha256(data).hexdigest()}.json").write_bytes(data)
    said: list[str] = []
    found, cut = answers.read(said.append)
    assert found == {"a": "yes", "b": Likely(-1.5, True, 2)}
    assert cut == {"b"}
    assert len([line for line in said if "is damaged: its requests are asked again" in line]) == 4


def test_another_model_is_asked_anew(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    ask(evaluation(model, tmp_path / "out"))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    flip(0.9)(sorted(other.glob("*.safetensors"))[0])
    said: list[str] = []
    ask(evaluation(other, tmp_path / "out"), said.append)
    ask(evaluation(model, tmp_path / "out", "length=32"), said.append)
    assert [line for line in said if " 0 are answered already" in line] == said


def test_a_worker_that_is_killed_is_started_again(
    ray_cluster: str, model: Path, alone: list[Answer], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "TOLD_EVERY", 0.0)
    config = evaluation(model, tmp_path)
    killed: list[int] = []
    with Engine(config, open_storage(config.output), lambda line: kill(line)) as engine:

        def kill(line: str) -> None:
            if line.startswith("16 of "):
                pid = engine.processes()[0]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        assert same(engine.answers(REQUESTS), alone)
        assert killed
        assert killed[0] not in engine.processes()


def test_workers_that_die_too_often_end_it(
    ray_cluster: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = evaluation(model, tmp_path, "cluster.max_failures=0", "cluster.workers=1")
    monkeypatch.setattr(module, "TOLD_EVERY", 0.0)
    with Engine(config, open_storage(config.output), lambda line: kill(line)) as engine:

        def kill(line: str) -> None:
            if line.startswith("8 of "):
                os.kill(engine.processes()[0], signal.SIGKILL)

        with pytest.raises(PanthalassaError, match=r"cluster\.max_failures=0 times"):
            engine.answers(REQUESTS)


def test_a_model_that_is_not_there_is_said(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(PanthalassaError, match="is not there"):
        ask(evaluation(tmp_path / "nothing", tmp_path / "out"))


def test_a_model_that_changes_under_way_ends_it(
    ray_cluster: str, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = evaluation(other, tmp_path / "out", "cluster.workers=1")
    with Engine(config, open_storage(config.output), lambda line: None) as engine:
        flip(0.9)(sorted(other.glob("*.safetensors"))[0])
        os.kill(engine.processes()[0], signal.SIGKILL)
        with pytest.raises(PanthalassaError, match="has changed since the evaluation began"):
            engine.answers(REQUESTS)


def test_a_cluster_without_room_is_said(ray_cluster: str, model: Path, tmp_path: Path) -> None:
    wide = evaluation(model, tmp_path, "cluster.cpus_per_worker=64", "cluster.wait_seconds=1")
    with pytest.raises(PanthalassaError, match=r"no worker was ready in cluster\.wait_seconds=1"):
        ask(wide)
