"""Shards through a network that fails or changes them, and objects that are rotten or absent."""

import hashlib
import os
from collections.abc import Callable

import pytest
from shards import SIZE, WAIT, Corpus, check, flip_a_bit, leftovers, line_of, refusal

from panthalassa.stream.cache import ShardCache


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
