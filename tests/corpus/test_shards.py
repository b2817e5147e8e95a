"""Shards hold the rows they were given, and their hashes tell when they do not."""

import errno
import hashlib
import io
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.manifest import MANIFEST, Manifest, Shard, read_manifest
from panthalassa.corpus.pack import pack
from panthalassa.corpus.shards import (
    count_targets,
    decode_shard,
    encode_shard,
    unigram_loss,
    write,
    write_shard,
)
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage, open_storage

DOCUMENTS = [np.array([0, *range(5, 5 + n), 1], dtype=np.int32) for n in (3, 20, 9, 1, 1, 14)]
PACKED = pack(DOCUMENTS, 8, pad=2).filled()


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Storage, Shard]:
    storage = open_storage(str(tmp_path))
    return storage, write_shard(storage, "train/en/00000.parquet", "train", "en", PACKED, 3)


def test_a_shard_gives_back_its_rows_and_its_record_is_true(stored: tuple[Storage, Shard]) -> None:
    storage, shard = stored
    data = storage.read(shard.path)
    file = pq.ParquetFile(io.BytesIO(data))
    table = file.read()
    assert np.array_equal(np.array(table["tokens"].to_pylist()), PACKED.tokens)
    assert table["lengths"].to_pylist() == PACKED.lengths
    assert table["offsets"].to_pylist() == PACKED.offsets
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert list(shard.row_groups) == groups
    assert shard.rows == len(PACKED.tokens) == sum(groups)
    assert shard.tokens == sum(len(document) for document in DOCUMENTS)
    assert shard.size == len(data)
    assert shard.sha256 == hashlib.sha256(data).hexdigest()


def test_the_same_rows_have_the_same_bytes() -> None:
    again = pack(DOCUMENTS, 8, pad=2).filled()
    assert encode_shard(PACKED, 3) == encode_shard(again, 3)


def test_images_of_rows_come_back_and_are_written_once(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = [[draw.bytes(500) for _ in range(row % 3)] for row in range(len(PACKED.tokens))]
    pairs = replace(PACKED, images=images)
    storage = open_storage(str(tmp_path))
    shard = write_shard(storage, "train/images-en/0.parquet", "train", "images-en", pairs, 3)
    data = storage.read(shard.path)
    assert decode_shard(data).images == images
    assert decode_shard(data).slice(1, 3).images == images[1:3]
    assert shard.images == sum(map(len, images)) > 1
    assert all(data.count(image) == 1 for row in images for image in row)
    assert decode_shard(encode_shard(PACKED, 3)).images is None


def test_a_full_disk_is_named_and_leaves_no_piece_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match=r"No space left on device.*Free space"):
        write(open_storage(str(tmp_path)), "train/en/00000.parquet", b"x")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_targets_are_all_tokens_but_the_first_of_each_piece() -> None:
    counts = count_targets(PACKED, 40)
    expected = np.zeros(40, dtype=np.int64)
    for document in DOCUMENTS:
        for start in range(0, len(document), 8):
            for token in document[start : start + 8][1:]:
                expected[token] += 1
    assert np.array_equal(counts, expected)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=9))
def test_unigram_loss_follows_its_formula(pairs: list[tuple[int, int]]) -> None:
    train, held_out = (np.array(column) for column in zip(*pairs, strict=True))
    held_out[0] += 1
    expected = -sum(
        h * math.log((c + 1) / (sum(train) + len(train)))
        for c, h in zip(train.tolist(), held_out.tolist(), strict=True)
    ) / sum(held_out)
    assert unigram_loss(train, held_out) == pytest.approx(expected, abs=1e-8)


def test_counts_without_any_preference_lose_the_logarithm_of_the_vocabulary() -> None:
    assert unigram_loss(np.zeros(256, dtype=np.int64), np.arange(256)) == pytest.approx(
        math.log(256)
    )


def test_a_manifest_is_read_back_with_its_fingerprint(
    prepared: tuple[Manifest, Storage],
) -> None:
    manifest, storage = prepared
    again = read_manifest(storage)
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint


def test_a_folder_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus at .* Make one with `panthalassa"):
        read_manifest(open_storage(str(tmp_path)))


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, data: bytes) -> None:
    storage = open_storage(str(tmp_path))
    storage.write(MANIFEST, data)
    with pytest.raises(CorpusError, match=r"manifest\.json is not a corpus manifest"):
        read_manifest(storage)
