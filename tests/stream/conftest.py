"""What the tests of the shard cache share: shards on an S3 server behind a proxy, and a cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3 import BUCKET, FaultyProxy, Server, use_s3
from shards import SIZE, Corpus, write_shards

from panthalassa import retry
from panthalassa import storage as storage_module
from panthalassa.storage import open_storage
from panthalassa.stream import cache as cache_module
from panthalassa.stream.cache import ShardCache

PIECE = 1 << 16
PATIENCE = 30.0


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
