"""A preparation that is killed anywhere goes on, and its corpus is the undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from processes import pids

from panthalassa.config import Corpus
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.prepare import prepare

WORDS = [
    "the",
    "sea",
    "is",
    "deep",
    "and",
    "the",
    "tide",
    "was",
    "slow",
    "under",
    "a",
    "pale",
    "moon",
]
DOMAINS = 40


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many domains, each of which has parts of its own."""
    root, draw = tmp_path_factory.mktemp("restart") / "raw", random.Random(0)
    for domain in range(DOMAINS):
        (root / f"d{domain:02d}").mkdir(parents=True)
        for number in range(12):
            text = f"{domain} {number}: {' '.join(draw.choices(WORDS, k=80))}"
            (root / f"d{domain:02d}" / f"{number}.txt").write_text(text)
    return root


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: str,
    raw: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_config: Callable[..., Corpus],
) -> tuple[Manifest, Path]:
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    return prepare(make_config(folder, raw), lambda line: None), folder


def index_of(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("documents/*/*/*.parquet"))


def everything(corpus: Path) -> dict[str, bytes]:
    """All but the record of the beginning, and what a killed write has left under a hidden name."""
    files = [path for path in corpus.rglob("[!.]*") if path.is_file() and path.parent != corpus]
    files += [corpus / name for name in ("manifest.json", "report.json", "tokenizer.json")]
    return {str(path.relative_to(corpus)): path.read_bytes() for path in files}


def wait(condition: Callable[[], bool], until: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + 90
    while not condition() and not until():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def later(condition: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """So many seconds after it."""
    since: list[float] = []

    def moment() -> bool:
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() > since[0] + seconds

    return moment


def test_killed_at_random_moments_it_gives_the_same_corpus(
    undisturbed: tuple[Manifest, Path],
    raw: Path,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
) -> None:
    whole, folder = undisturbed
    parts = len(index_of(folder))
    assert parts > DOMAINS
    seed = time.time_ns()
    draw, corpus = random.Random(seed), tmp_path / "corpus"
    config = make_config(corpus, raw)
    address = ray.get_runtime_context().gcs_address
    settings = config.model_dump(exclude={"sources"}, exclude_unset=True)
    keys = [f"corpus.{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "panthalassa.cli", "prepare", str(raw), *keys]
    command.append(f"cluster.address={address}")

    def killed_when(moment: Callable[[], bool]) -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
            wait(moment, until=lambda: driver.poll() is not None)
            driver.kill()
            told = driver.communicate()[0].decode()
            assert driver.returncode == -signal.SIGKILL, f"seed {seed}: {told}"

    killed_when(later(lambda: (corpus / "preparation.json").exists(), draw.uniform(0, 1)))
    kept: dict[Path, int] = {}
    for moment in sorted(draw.sample(range(1, parts - 10), 2)):
        killed_when(lambda moment=moment: len(index_of(corpus)) >= moment)
        assert not (corpus / "manifest.json").exists(), f"seed {seed}"
        assert {path: path.stat().st_ino for path in kept} == kept, f"seed {seed}"
        done = [path.relative_to(corpus / "documents") for path in index_of(corpus)]
        kept = {corpus / path: (corpus / path).stat().st_ino for path in done}
    again = prepare(config, lambda line: None)
    assert again.fingerprint == whole.fingerprint, f"seed {seed}"
    assert everything(corpus) == everything(folder)
    assert {path: path.stat().st_ino for path in kept} == kept, "a finished part was written again"


def test_a_killed_worker_changes_nothing(
    undisturbed: tuple[Manifest, Path],
    raw: Path,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
) -> None:
    whole, folder = undisturbed
    corpus, victims = tmp_path / "corpus", []

    def kill() -> None:
        wait(lambda: bool(index_of(corpus)))
        wait(lambda: bool(pids("ray::Hash") + pids("ray::MapBatches")))
        for pid in pids("ray::Hash") + pids("ray::MapBatches"):
            os.kill(pid, signal.SIGKILL)
            victims.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    again = prepare(make_config(corpus, raw), lambda line: None)
    killer.join()
    assert victims
    assert again.fingerprint == whole.fingerprint
    assert everything(corpus) == everything(folder)


def test_parts_whose_files_are_not_what_they_were_are_written_again(
    undisturbed: tuple[Manifest, Path],
    raw: Path,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
) -> None:
    whole, folder = undisturbed
    corpus = tmp_path / "corpus"
    shutil.copytree(folder, corpus)
    (corpus / "manifest.json").unlink()
    (corpus / whole.shards[3].path).unlink()
    for rotten in (corpus / whole.shards[5].path, corpus / whole.index[7].path):
        rotten.write_bytes(rotten.read_bytes()[:-9] + b"!" * 9)
    kept = {path: path.stat().st_ino for path in index_of(corpus)}
    assert prepare(make_config(corpus, raw), lambda line: None) == whole
    assert everything(corpus) == everything(folder)
    assert sum(path.stat().st_ino != inode for path, inode in kept.items()) == 3
