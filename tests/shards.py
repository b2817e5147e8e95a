"""Shards of random bytes on a server, a cache for them, and what a test asks about both."""

import hashlib
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from phases import bare_manifest
from s3 import BUCKET, KEY_ID, SECRET, FaultyProxy

from panthalassa.corpus.manifest import MANIFEST, Shard
from panthalassa.errors import CorpusError
from panthalassa.stream.cache import ShardCache

SIZE = 200_000
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


def check(file: pa.MemoryMappedFile, shard: Shard) -> None:
    assert isinstance(file, pa.MemoryMappedFile)
    assert hashlib.sha256(file.read()).hexdigest() == shard.sha256


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
