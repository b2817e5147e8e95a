"""Shards in the cache: each downloaded once and whole, whoever races, dies or fills the disk."""

import errno
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3 import KEY_ID, SECRET
from shards import SIZE, WAIT, Corpus, check, flip_a_bit, leftovers, line_of, refusal

from panthalassa.storage import open_storage
from panthalassa.stream import cache as cache_module
from panthalassa.stream.cache import ShardCache


def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_verified", {})


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
