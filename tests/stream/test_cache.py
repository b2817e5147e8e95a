"""Shards on their way from a real S3 server, through a network that fails, to a local file."""

import errno
import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from phases import bare_manifest
from s3 import BUCKET, KEY_ID, SECRET, FaultyProxy, Server, s3_server, use_s3

from panthalassa import retry
from panthalassa import storage as storage_module
from panthalassa.corpus.manifest import MANIFEST, Shard
from panthalassa.errors import CorpusError
from panthalassa.storage import open_storage
from panthalassa.stream import cache as cache_module
from panthalassa.stream.cache import ShardCache

SIZE = 200_000
PIECE = 1 << 16
PATIENCE = 30.0
WAIT = 60

OPEN_ALL = """
import hashlib, pickle, random, sys
from panthalassa import retry, storage
storage.CHUNK, storage.SDK_TRIES, retry.FIRST_PAUSE = 1 << 16, 1, 0.02
with open(sys.argv[1], "rb") as file:
    cache, shards = pickle.load(file)
for turn in range(int(sys.argv[2])):
    random.shuffle(shards)
    for shard in shards:
        with cache.open(shard) as file:
            assert hashlib.sha256(file.read()).hexdigest() == shard.sha256
print("all are right")
"""


@dataclass(frozen=True)
class Corpus:
    folder: Path
    shards: list[Shard]
    proxy: FaultyProxy
    cache: ShardCache

    def key(self, number: int) -> str:
        return f"{BUCKET}/{self.folder.name}/{self.shards[number].path}"

    def file(self, number: int) -> Path:
        return self.cache.directory / f"{self.shards[number].sha256}.parquet"

    def cached(self) -> set[int]:
        return {number for number in range(len(self.shards)) if self.file(number).exists()}

    def with_limit(self, shards: float) -> ShardCache:
        return ShardCache(
            self.cache.directory, int(shards * SIZE), self.cache.storage, self.cache.patience
        )

    def open_in_a_process(self, cache: ShardCache, turns: int = 1) -> "subprocess.Popen[str]":
        order = self.folder.parent.parent / "order.pickle"
        order.write_bytes(pickle.dumps((cache, self.shards)))
        command = [sys.executable, "-c", OPEN_ALL, str(order), str(turns)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def write_shards(folder: Path, count: int) -> list[Shard]:
    """`count` objects of SIZE random bytes (what is in them matters to no cache), and a manifest."""
    chance, shards = random.Random(folder.name), []
    for number in range(count):
        data = chance.randbytes(SIZE)
        path = folder / f"train/aa/{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        shards.append(
            Shard(
                path=f"train/aa/{number}.parquet",
                domain="aa",
                split="train",
                rows=1,
                tokens=1,
                row_groups=(1,),
                size=SIZE,
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
    manifest = bare_manifest(shards, 16)
    (folder / MANIFEST).write_bytes(manifest.encode())
    return shards


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture
def make_corpus(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Corpus]]:
    """make_corpus(n): a corpus of n shards behind a proxy, and an empty cache for all of them."""
    monkeypatch.setattr(cache_module, "_verified", {})
    monkeypatch.setattr(storage_module, "CHUNK", PIECE)
    monkeypatch.setattr(storage_module, "SDK_TRIES", 1)  # all is left to this platform's retries
    monkeypatch.setattr(storage_module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    with FaultyProxy(server.url, seed=7) as proxy:
        use_s3(monkeypatch, proxy.url)

        def make(count: int) -> Corpus:
            folder = server.folder / BUCKET / tmp_path.name
            storage = open_storage(f"s3://{BUCKET}/{folder.name}")
            cache = ShardCache(tmp_path / "cache", count * SIZE, storage, PATIENCE)
            return Corpus(folder, write_shards(folder, count), proxy, cache)

        yield make


@pytest.fixture
def corpus(make_corpus: Callable[[int], Corpus]) -> Corpus:
    return make_corpus(3)


def check(file: pa.MemoryMappedFile, shard: Shard) -> None:
    assert isinstance(file, pa.MemoryMappedFile)
    assert hashlib.sha256(file.read()).hexdigest() == shard.sha256


def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_verified", {})


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def refusal(cache: ShardCache, shard: Shard) -> str:
    with pytest.raises(CorpusError) as refused:
        cache.open(shard)
    text = str(refused.value)
    assert "\n" not in text
    assert KEY_ID not in text
    assert SECRET not in text
    return text


def line_of(corpus: Corpus, number: int) -> str:
    lines = (corpus.folder / MANIFEST).read_text().splitlines()
    hashes = [i for i, line in enumerate(lines, 1) if corpus.shards[number].sha256 in line]
    return f"{MANIFEST} (line {hashes[0]})"


def leftovers(cache: ShardCache) -> list[Path]:
    return list(cache.directory.glob("*.part"))


def test_a_local_shard_is_mapped_where_it_lies(corpus: Corpus) -> None:
    cache = ShardCache(corpus.cache.directory, 1, open_storage(str(corpus.folder)))
    for shard in corpus.shards * 2:
        check(cache.open(shard), shard)
    assert not cache.directory.exists()
    assert not corpus.proxy.requests


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_local_shard_that_rots_is_refused(corpus: Corpus, opened_before: bool) -> None:
    cache = ShardCache(corpus.cache.directory, 1, open_storage(str(corpus.folder)))
    if opened_before:
        cache.open(corpus.shards[1])
    flip_a_bit(corpus.folder / corpus.shards[1].path)
    text = refusal(cache, corpus.shards[1])
    assert f"shard {corpus.folder}/train/aa/1.parquet is corrupt: SHA-256 is " in text
    assert f"{line_of(corpus, 1)} says {corpus.shards[1].sha256}" in text
    (corpus.folder / corpus.shards[1].path).unlink()
    assert "does not exist" in refusal(cache, corpus.shards[1])
    check(cache.open(corpus.shards[0]), corpus.shards[0])


def test_a_shard_is_downloaded_once_and_then_local(corpus: Corpus) -> None:
    check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert corpus.proxy.downloads(corpus.key(0)) == 1
    before = len(corpus.proxy.requests)
    check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert len(corpus.proxy.requests) == before
    assert corpus.cached() == {0}
    assert not leftovers(corpus.cache)


def test_least_recently_opened_shards_make_room(make_corpus: Callable[[int], Corpus]) -> None:
    corpus = make_corpus(5)
    cache = corpus.with_limit(3.5)
    for number in (0, 1, 2):
        cache.open(corpus.shards[number])
    for age, number in enumerate((2, 1, 0)):
        os.utime(corpus.file(number), (1000 - age, 1000 - age))
    cache.open(corpus.shards[0])
    cache.open(corpus.shards[3])
    assert corpus.cached() == {0, 2, 3}
    cache.open(corpus.shards[4])
    assert corpus.cached() == {0, 3, 4}
    assert corpus.proxy.downloads(corpus.key(0)) == 1


def test_a_shard_that_makes_room_stays_readable_to_those_who_have_it(corpus: Corpus) -> None:
    cache = corpus.with_limit(1)
    first = cache.open(corpus.shards[0])
    cache.open(corpus.shards[1])
    assert corpus.cached() == {1}
    check(first, corpus.shards[0])


def test_a_shard_beyond_the_limit_is_served_alone(corpus: Corpus) -> None:
    cache = corpus.with_limit(0.5)
    for number, shard in enumerate(corpus.shards):
        check(cache.open(shard), shard)
        assert corpus.cached() == {number}


def test_processes_that_want_the_same_shards_download_each_once(
    make_corpus: Callable[[int], Corpus],
) -> None:
    corpus = make_corpus(20)
    processes = [corpus.open_in_a_process(corpus.cache) for _ in range(4)]
    for process in processes:
        said, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0, said
    assert [corpus.proxy.downloads(corpus.key(number)) for number in range(20)] == [1] * 20


def test_processes_in_a_small_cache_on_a_bad_network_get_every_shard_right(
    make_corpus: Callable[[int], Corpus],
) -> None:
    corpus = make_corpus(20)
    corpus.proxy.rate, corpus.proxy.kinds = 0.03, ("503", "reset", "cut")
    corpus.proxy.next(["503", "flip", "reset", "cut", "flip"])  # three flips could refuse a shard
    processes = [corpus.open_in_a_process(corpus.with_limit(6)) for _ in range(4)]
    for process in processes:
        said, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0, said
    assert corpus.proxy.faults.keys() == {"503", "reset", "cut", "flip"}
    assert 0 < len(corpus.cached()) <= 6
    assert not leftovers(corpus.cache)


def test_threads_that_want_the_same_shard_download_it_once(corpus: Corpus) -> None:
    corpus.proxy.delay = 0.02
    with ThreadPoolExecutor(6) as threads:
        for file in threads.map(corpus.cache.open, [corpus.shards[0]] * 6):
            check(file, corpus.shards[0])
    assert corpus.proxy.downloads(corpus.key(0)) == 1


def hang_in_a_download(corpus: Corpus) -> "subprocess.Popen[str]":
    """A process in the middle of a shard, which it will not finish."""
    corpus.proxy.stall = 2 * WAIT
    corpus.proxy.next([None, None, "hang"])
    process = corpus.open_in_a_process(corpus.cache)
    until = time.monotonic() + WAIT
    while not corpus.proxy.faults["hang"]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


def test_a_process_killed_in_a_download_leaves_nothing_torn(corpus: Corpus) -> None:
    process = hang_in_a_download(corpus)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    torn = {path.stem for path in leftovers(corpus.cache)}
    assert len(torn) == 1
    assert not corpus.cached()
    other = next(shard for shard in corpus.shards if shard.sha256 not in torn)
    check(corpus.cache.open(other), other)
    assert not leftovers(corpus.cache)
    for shard in corpus.shards:
        check(corpus.cache.open(shard), shard)


def test_who_waits_for_a_process_that_is_killed_downloads_instead(corpus: Corpus) -> None:
    process = hang_in_a_download(corpus)
    wanted = next(s for s in corpus.shards if s.sha256 == leftovers(corpus.cache)[0].stem)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(corpus.cache.open, wanted)
        time.sleep(0.3)
        assert not waiting.done()
        process.kill()
        process.communicate()
        check(waiting.result(WAIT), wanted)


@pytest.mark.parametrize("size", [SIZE, SIZE - 1, 0, SIZE + 1])
def test_a_cached_file_that_rots_is_downloaded_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    corpus.cache.open(corpus.shards[0])
    as_another_process(monkeypatch)
    flip_a_bit(corpus.file(0))
    os.truncate(corpus.file(0), size)
    for _ in range(2):
        check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert corpus.proxy.downloads(corpus.key(0)) == 2


@pytest.mark.parametrize("kind", ["flip", "short"])
def test_what_is_changed_on_the_way_costs_a_download(corpus: Corpus, kind: str) -> None:
    """A bit, or the end of an answer, in whose place pyarrow leaves zeros."""
    corpus.proxy.next([kind, None, None, None, kind])
    check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert corpus.proxy.faults[kind] == 2
    assert corpus.proxy.downloads(corpus.key(0)) == 3


def test_a_network_that_always_flips_bits_is_suspected(corpus: Corpus) -> None:
    corpus.proxy.rate, corpus.proxy.kinds = 1.0, ("flip",)
    text = refusal(corpus.cache, corpus.shards[0])
    assert "is corrupt: SHA-256 is" in text
    assert "3 downloads differ" in text
    assert corpus.proxy.downloads(corpus.key(0)) == 3
    assert not leftovers(corpus.cache)
    assert not corpus.cached()


def test_a_rotten_object_is_named_with_its_line(corpus: Corpus) -> None:
    flip_a_bit(corpus.folder / corpus.shards[2].path)
    found = hashlib.sha256((corpus.folder / corpus.shards[2].path).read_bytes()).hexdigest()
    text = refusal(corpus.cache, corpus.shards[2])
    place = f"{corpus.cache.storage.uri}/train/aa/2.parquet"
    assert f"shard {place} is corrupt: SHA-256 is {found}, {line_of(corpus, 2)} says" in text
    assert "the object itself is rotten" in text
    assert "Restore the file or prepare the corpus anew." in text
    assert corpus.proxy.downloads(corpus.key(2)) == 2
    assert not leftovers(corpus.cache)
    assert not corpus.cached()


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0, 40 * SIZE])
def test_an_object_of_another_size_is_corrupt(corpus: Corpus, size: int) -> None:
    """And what is too large is not downloaded to its end."""
    os.truncate(corpus.folder / corpus.shards[1].path, size)
    text = refusal(corpus.cache, corpus.shards[1])
    assert "is corrupt: it has " in text
    assert f"{line_of(corpus, 1)} says {SIZE}" in text
    assert len(corpus.proxy.requests) < 10
    assert not leftovers(corpus.cache)


def test_an_absent_object_is_named_with_its_line(corpus: Corpus) -> None:
    (corpus.folder / corpus.shards[1].path).unlink()
    text = refusal(corpus.cache, corpus.shards[1])
    place = f"{corpus.cache.storage.uri}/train/aa/1.parquet"
    assert f"shard {place} is listed in {line_of(corpus, 1)} but does not exist" in text


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "cut", "stall"])
@pytest.mark.parametrize("healthy", [0, 3])
def test_a_failure_that_passes_is_waited_out(corpus: Corpus, kind: str, healthy: int) -> None:
    """At the first request for the shard, and in mid-shard; more often than the SDK tries."""
    corpus.proxy.stall = 1.5
    corpus.proxy.next([None] * healthy + [kind] * 3)
    check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert corpus.proxy.faults[kind] == 3
    assert corpus.proxy.downloads(corpus.key(0)) <= (1 if healthy else 4)


def test_a_connection_that_is_silent_in_mid_body_is_given_up(corpus: Corpus) -> None:
    corpus.proxy.stall = 2 * WAIT
    corpus.proxy.next([None, None, "hang"])
    check(corpus.cache.open(corpus.shards[0]), corpus.shards[0])
    assert corpus.proxy.faults["hang"] == 1


def test_a_failure_that_stays_is_told_when_patience_ends(corpus: Corpus) -> None:
    corpus.proxy.rate, corpus.proxy.kinds = 1.0, ("503",)
    text = refusal(
        ShardCache(corpus.cache.directory, SIZE, corpus.cache.storage, 2.0), corpus.shards[0]
    )
    assert "HTTP status 503" in text
    assert "tries in" in text


def test_a_refused_key_is_told_at_once(corpus: Corpus) -> None:
    corpus.proxy.rate, corpus.proxy.kinds = 1.0, ("unknown_key",)
    assert "Check AWS_ACCESS_KEY_ID" in refusal(corpus.cache, corpus.shards[0])
    assert [path for _, path, _ in corpus.proxy.requests].count(corpus.key(0)) == 1


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    """A file system of 1 MiB."""
    return make_disk("1m")


def test_a_full_disk_is_named_with_the_key(
    make_corpus: Callable[[int], Corpus], small_disk: Path
) -> None:
    corpus = make_corpus(8)
    cache = ShardCache(small_disk / "cache", 100 * SIZE, corpus.cache.storage)
    for shard in corpus.shards[:5]:
        check(cache.open(shard), shard)
    text = refusal(cache, corpus.shards[5])
    assert f"the disk of the cache {small_disk}/cache is full" in text
    assert "stream.cache_directory" in text
    assert not leftovers(cache)
    check(cache.open(corpus.shards[4]), corpus.shards[4])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_refuses_room_is_named_with_the_key(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    text = refusal(corpus.cache, corpus.shards[0])
    assert f"the disk of the cache {corpus.cache.directory} is full" in text
    assert "stream.cache_directory" in text
    assert not leftovers(corpus.cache)


def test_a_directory_that_can_not_be_made_is_named_with_the_key(corpus: Corpus) -> None:
    corpus.cache.directory.write_text("in the way")
    text = refusal(corpus.cache, corpus.shards[0])
    assert str(corpus.cache.directory) in text
    assert "stream.cache_directory" in text


def test_a_pickled_cache_holds_no_credentials(corpus: Corpus) -> None:
    pickled = pickle.dumps(corpus.cache)
    assert SECRET.encode() not in pickled
    assert KEY_ID.encode() not in pickled


def test_locks_are_let_go(corpus: Corpus) -> None:
    """Also after a failure: else the next process waits for ever."""
    corpus.proxy.next(["denied"])
    refusal(corpus.cache, corpus.shards[0])
    opened = threading.Thread(target=corpus.cache.open, args=(corpus.shards[0],), daemon=True)
    opened.start()
    opened.join(WAIT)
    assert not opened.is_alive()
    assert corpus.cached() == {0}
