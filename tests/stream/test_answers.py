"""Shards that say what counts: from packing through reading to the labels, each answer counts once."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phases import CORPUS, bare_manifest, phase
from ranks import tiny

from panthalassa.config import Stream
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.pack import Packed, pack, pack_whole
from panthalassa.corpus.shards import (
    count_targets,
    counted,
    decode_shard,
    encode_shard,
    write_shard,
)
from panthalassa.corpus.verify import _of_shard
from panthalassa.errors import ConfigError
from panthalassa.model.transformer import IGNORED
from panthalassa.storage import open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Curriculum
from panthalassa.stream.order import Mixture, Order
from panthalassa.stream.reader import PADDING, Samples, ShardReader, open_stream
from panthalassa.train.loop import share
from panthalassa.train.step import micro_batches

LENGTH = 24
PAD = 2


@dataclass(frozen=True)
class Unit:
    """Documents that stay together, in which all tokens differ, and the runs that count in each."""

    documents: list[np.ndarray]
    answers: list[list[int]]

    def counting(self) -> set[int]:
        return {
            token
            for document, bounds in zip(self.documents, self.answers, strict=True)
            for start, end in zip(bounds[::2], bounds[1::2], strict=True)
            for token in document[start:end].tolist()
        }


@st.composite
def units(draw: st.DrawFn) -> list[Unit]:
    """Up to some ten of one or two documents each; a run never holds the first token, as it never does
    where an answer follows on a prompt."""
    found, token = [], 10
    for _ in range(draw(st.integers(1, 12))):
        documents, answers = [], []
        for most in draw(st.sampled_from([(LENGTH,), (LENGTH // 2, LENGTH // 2)])):
            length = draw(st.integers(2, most))
            documents.append(np.arange(token, token + length, dtype=np.int32))
            token += length
            bounds = draw(st.sets(st.integers(1, length), min_size=2, max_size=6))
            answers.append(sorted(bounds)[: len(bounds) // 2 * 2])
        found.append(Unit(documents, answers))
    return found


def packed(found: list[Unit], seed: int = 0) -> Packed:
    documents, answers = [u.documents for u in found], [u.answers for u in found]
    return pack_whole(documents, answers, LENGTH, PAD).shuffled(seed).filled()


def written(folder: Path, rows: Packed, rows_per_group: int) -> tuple[Manifest, ShardReader]:
    storage = open_storage(str(folder))
    shard = write_shard(storage, "train/aa/0.parquet", "train", "aa", rows, rows_per_group)
    manifest = bare_manifest([shard], LENGTH)
    cache = ShardCache(folder / "cache", 1 << 20, storage)
    return manifest, ShardReader(cache, manifest)


@given(units(), st.integers(0, 9))
def test_documents_of_a_unit_stay_whole_and_side_by_side(found: list[Unit], seed: int) -> None:
    rows = packed(found, seed)
    places = {}
    for row, (tokens, lengths, offsets) in enumerate(
        zip(rows.tokens.tolist(), rows.lengths, rows.offsets, strict=True)
    ):
        assert offsets == [0] * len(lengths)
        for number, start in enumerate(list(accumulate(lengths, initial=0))[:-1]):
            places[tuple(tokens[start : start + lengths[number]])] = row, number
    assert len(places) == sum(len(unit.documents) for unit in found)
    for unit in found:
        row, number = places[tuple(unit.documents[0].tolist())]
        for index, document in enumerate(unit.documents):
            assert places[tuple(document.tolist())] == (row, number + index)


@settings(max_examples=30)
@given(units(), st.integers(1, 4), st.integers(1, 3))
def test_in_an_epoch_every_answer_token_is_a_target_once_and_no_other_token_is(
    found: list[Unit], rows_per_group: int, size: int
) -> None:
    expected = set().union(*(unit.counting() for unit in found))
    with tempfile.TemporaryDirectory() as folder:
        rows = packed(found)
        manifest, reader = written(Path(folder), rows, rows_per_group)
        order = Order(manifest, LENGTH, Mixture(), 5)
        samples = reader.fetch(order.locate(np.arange(len(rows.tokens))), LENGTH)
    assert sorted(samples.tokens[samples.counted].tolist()) == sorted(expected)
    assert samples.targets == len(expected)
    assert manifest.shards[0].counted == len(expected)
    assert not samples.counted[samples.documents == PADDING].any()
    batches = micro_batches(samples, -(-len(samples) // size), size, torch.device("cpu"))
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(labels[labels != IGNORED].tolist()) == sorted(expected)
    counts = count_targets(rows, 1000)
    assert np.flatnonzero(counts).tolist() == sorted(expected)
    assert counts.max() == 1


@given(units(), st.integers(1, 4))
def test_a_shard_gives_back_what_counts(found: list[Unit], rows_per_group: int) -> None:
    rows = packed(found)
    again = decode_shard(encode_shard(rows, rows_per_group))
    assert np.array_equal(again.tokens, rows.tokens)
    assert (again.lengths, again.answers) == (rows.lengths, rows.answers)
    assert np.array_equal(counted(again), counted(rows))


def test_verification_counts_what_counts_again(tmp_path: Path) -> None:
    rows = packed([Unit([np.arange(10, 20, dtype=np.int32)], [[3, 5, 8, 10]])])
    manifest, _ = written(tmp_path, rows, 1)
    (shard,) = manifest.shards
    assert _of_shard(manifest, shard, tmp_path / shard.path)["tokens that count"] == (4, 4)


@given(st.integers(0, 2**32))
def test_marks_say_the_document_and_whether_it_counts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    documents = draw.integers(PADDING, 5, (3, 7)).astype(np.int32)
    samples = Samples(documents + 100, documents, (draw.random((3, 7)) < 0.5) & (documents >= 0))
    again = Samples.unmarked(samples.tokens, samples.marked.astype(np.int16))
    for name in ("tokens", "documents", "counted"):
        assert np.array_equal(getattr(again, name), getattr(samples, name)), name
        assert getattr(again, name).dtype == getattr(samples, name).dtype


def test_what_knows_no_answers_is_written_as_it_always_was() -> None:
    """Neither the bytes of shards nor the fingerprints of manifests may change."""
    assert CORPUS.fingerprint.startswith("ffb6dc9b2dca44eb14da7790c1ec7db8")
    assert set(json.loads(CORPUS.encode())["shards"][0]) == {
        *("path", "domain", "split", "rows", "tokens", "row_groups", "size", "sha256")
    }
    plain = pack([np.arange(9, dtype=np.int32)], 4, PAD).filled()
    assert decode_shard(encode_shard(plain, 2)).answers is None


def test_what_counts_comes_through_the_stream(ray_cluster: None, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    found = []
    for number in range(40):
        length = int(draw.integers(4, LENGTH))
        document = np.arange(100 * number, 100 * number + length, dtype=np.int32)
        found.append(Unit([document], [[1, 2, 3, length]]))
    rows = packed(found)
    manifest, reader = written(tmp_path, rows, 4)
    first = phase(0, corpus=manifest.fingerprint, sequence_length=LENGTH, global_batch=5)
    steps = len(rows.tokens) // 5
    pieces = list(Curriculum([first], manifest).pieces(range(steps)))
    batches = [b.samples for b in open_stream(reader, pieces, 1, 0, Stream(ahead_megabytes=1))]
    order = Order(manifest, LENGTH, Mixture(), first.seed)
    expected = reader.fetch(order.locate(np.arange(steps * 5)), LENGTH)
    for name in ("tokens", "documents", "counted"):
        together = np.concatenate([getattr(batch, name) for batch in batches])
        assert np.array_equal(together, getattr(expected, name)), name
    assert 0 < expected.targets < Samples.of_text(expected.tokens, expected.documents).targets


def test_rows_of_examples_are_never_cut(tmp_path: Path) -> None:
    manifest, _ = written(tmp_path, packed([Unit([np.arange(9, dtype=np.int32)], [[1, 9]])]), 1)
    chats = manifest.model_copy(update={"objective": "sft"})
    Order(chats, LENGTH, Mixture(), 0)
    with pytest.raises(ConfigError, match=f"set it to {LENGTH}"):
        Order(chats, LENGTH // 2, Mixture(), 0)


@dataclass(frozen=True)
class Sharing:
    """As much of a run as sharing looks at."""

    config: Any
    mesh: Any
    partition: Any
    phase: Any


def shared(samples: dict[int, Samples]) -> tuple[Samples, int]:
    """What a rank of a tensor-parallel group has of the samples that its first rank has read."""
    from ranks import TinyRun

    config = tiny("parallel.tp_size=2")
    run = TinyRun(config)
    dp = run.mesh["dp"].get_local_rank()
    own = samples[dp] if run.reads else None
    sharing = Sharing(config, run.mesh, run.partition, phase(0, sequence_length=LENGTH))
    return share(own, sharing), dp  # type: ignore[arg-type]


def test_the_ranks_of_a_tensor_parallel_group_agree_on_what_counts(ranks: Any) -> None:
    draw = np.random.default_rng(1)

    def samples() -> Iterator[tuple[int, Samples]]:
        for dp in range(2):
            documents = draw.integers(PADDING, 3, (2, LENGTH)).astype(np.int32)
            counts = (draw.random(documents.shape) < 0.4) & (documents >= 0)
            yield dp, Samples(documents + 7, documents, counts)

    read = dict(samples())
    for found, dp in ranks(4, shared, read):
        for name in ("tokens", "documents", "counted"):
            assert np.array_equal(getattr(found, name), getattr(read[dp], name)), name
