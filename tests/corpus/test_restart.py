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
from panthalassa.corpus.manifest import Manifest, read_manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage

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
PARTITIONS = 9


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


COMMAND = """
from panthalassa.cli import app
from panthalassa.corpus import reading
reading.PARTITION_BYTES = 20_000
app()
"""


def index_of(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("documents/*/*/*.parquet"))


def notes_of(corpus: Path, stage: str) -> list[Path]:
    return sorted(corpus.glob(f"staging/{stage}/*.json"))


def done(corpus: Path) -> dict[Path, int]:
    """What is not to be done again, with the inode that it has."""
    files = [*index_of(corpus), *corpus.glob("staging/*/*.json")]
    return {path: path.stat().st_ino for path in files}


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


def test_killed_at_random_moments_it_gives_the_same_corpus_and_repeats_nothing(
    undisturbed: tuple[Manifest, Path],
    raw: Path,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
) -> None:
    whole, folder = undisturbed
    seed = time.time_ns()
    draw, corpus = random.Random(seed), tmp_path / "corpus"
    config = make_config(corpus, raw)
    address = ray.get_runtime_context().gcs_address
    settings = config.model_dump(exclude={"sources"}, exclude_unset=True)
    keys = [f"corpus.{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-c", COMMAND, "prepare", str(raw), *keys]
    command.append(f"cluster.address={address}")
    kept: dict[Path, int] = {}

    def killed_when(moment: Callable[[], bool]) -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
            wait(moment, until=lambda: driver.poll() is not None)
            driver.kill()
            told = driver.communicate()[0].decode()
            assert driver.returncode == -signal.SIGKILL, f"seed {seed}: {told}"
        assert not (corpus / "manifest.json").exists(), f"seed {seed}"
        assert {path: path.stat().st_ino for path in kept} == kept, f"seed {seed}"
        kept.update(done(corpus))

    killed_when(later(lambda: (corpus / "preparation.json").exists(), draw.uniform(0, 1)))
    for stage in ("documents", "encoded"):
        partitions = draw.randrange(1, PARTITIONS - 2)
        killed_when(lambda s=stage, n=partitions: len(notes_of(corpus, s)) >= n)
    parts = draw.randrange(1, len(index_of(folder)) - 10)
    killed_when(lambda: len(index_of(corpus)) >= parts)
    assert len(notes_of(corpus, "documents")) == PARTITIONS
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, f"seed {seed}: {finished.stdout} {finished.stderr}"
    assert read_manifest(open_storage(str(corpus))) == whole, f"seed {seed}"
    assert everything(corpus) == everything(folder)
    written = {path: inode for path, inode in kept.items() if path in index_of(corpus)}
    assert done(corpus).items() >= written.items(), "a finished part was written again"
    assert not (corpus / "staging").exists()


@pytest.mark.parametrize("what", ["note", "table"])
def test_what_was_kept_and_is_spoilt_is_made_again_or_named(
    undisturbed: tuple[Manifest, Path],
    raw: Path,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    whole, _ = undisturbed
    config = make_config(tmp_path / "corpus", raw)
    with monkeypatch.context() as patch:
        patch.setattr("panthalassa.corpus.encoding.write_shards", lambda *args: sys.exit("killed"))
        with pytest.raises(SystemExit):
            prepare(config, lambda line: None)
    [note] = notes_of(tmp_path / "corpus", "encoded")
    [table] = tmp_path.glob("corpus/staging/encoded/*/*.parquet")
    path = note if what == "note" else table
    path.write_bytes(path.read_bytes()[:-9] + b"!" * 9)
    if what == "table":
        with pytest.raises(
            CorpusError, match=r"ids-00000-00000\.parquet is not what was written\. Remove"
        ):
            prepare(config, lambda line: None)
        shutil.rmtree(tmp_path / "corpus" / "staging")
    assert prepare(config, lambda line: None) == whole


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
        wait(lambda: bool(pids("ray::MapBatches")))
        for pid in pids("ray::MapBatches"):
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
    rotten = [whole.shards[5].path, *(index.path for index in whole.index[7:14])]
    for number, path in enumerate(rotten):
        content = bytearray((corpus / path).read_bytes())
        content[-9 - number * (len(content) // 10) : len(content)] = b"!" * 9
        (corpus / path).write_bytes(content)
    kept = {path: path.stat().st_ino for path in index_of(corpus)}
    assert prepare(make_config(corpus, raw), lambda line: None) == whole
    assert everything(corpus) == everything(folder)
    assert sum(path.stat().st_ino != inode for path, inode in kept.items()) == 9
