"""Preparation gives the same corpus for the same input, whole, or says what is wrong."""

import gzip
import hashlib
import io
import json
import logging
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparations import files_of, run

from panthalassa.config import Corpus
from panthalassa.corpus import dedup, pipeline, reading, staging
from panthalassa.corpus.balance import sample_shares
from panthalassa.corpus.manifest import Manifest, Split, read_manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.shards import unigram_loss
from panthalassa.corpus.sources import find_files, read_documents
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage, open_storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

Config = Callable[..., Corpus]
Pieces = Counter[tuple[int, ...]]


def pieces_of(manifest: Manifest, storage: Storage, split: Split) -> dict[str, Pieces]:
    """The pieces of documents in a split's rows, by domain."""
    found: dict[str, Pieces] = {}
    for shard in manifest.split(split):
        data = storage.read(shard.path)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
        table = pq.read_table(io.BytesIO(data))
        pieces = found.setdefault(shard.domain, Counter())
        for row, lengths in zip(
            table["tokens"].to_pylist(), table["lengths"].to_pylist(), strict=True
        ):
            assert len(row) == manifest.sequence_length
            start = 0
            for length in lengths:
                pieces[tuple(row[start : start + length])] += 1
                start += length
    return found


def texts_of(manifest: Manifest, storage: Storage, split: Split) -> set[str]:
    """The documents of a split that are no longer than a row."""
    tokenizer = read_tokenizer(storage, manifest)
    return {
        tokenizer.decode(piece)
        for pieces in pieces_of(manifest, storage, split).values()
        for piece in pieces
        if piece[0] == manifest.bos and piece[-1] == manifest.eos
    }


def every_document_is_there_once(manifest: Manifest, storage: Storage, sources: Path) -> None:
    tokenizer = read_tokenizer(storage, manifest)
    expected: dict[str, Pieces] = {}
    size = manifest.sequence_length
    for file in find_files([str(sources)]):
        for document in read_documents(file):
            ids = (manifest.bos, *tokenizer.encode(document.text), manifest.eos)
            pieces = (ids[start : start + size] for start in range(0, len(ids), size))
            expected.setdefault(document.domain, Counter()).update(pieces)
    train, held_out = (pieces_of(manifest, storage, s) for s in ("train", "held_out"))
    found = {d: train.get(d, Counter()) + held_out.get(d, Counter()) for d in {*train, *held_out}}
    assert found == expected


def test_the_tokens_of_every_document_are_in_exactly_one_place(
    prepared: tuple[Manifest, Storage], sources: Path
) -> None:
    manifest, storage = prepared
    every_document_is_there_once(manifest, storage, sources)
    assert sum(manifest.documents.values()) == 90
    assert {shard.domain for shard in manifest.shards} == {"en", "el", "th"}


def test_two_preparations_of_the_same_input_are_equal_to_the_last_byte(
    prepared: tuple[Manifest, Storage],
    sources: Path,
    tmp_path: Path,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, storage = prepared
    moved = tmp_path / "elsewhere" / sources.name
    shutil.copytree(sources, moved)
    monkeypatch.setattr(reading, "TABLE_ROWS", 7)
    monkeypatch.setattr(pipeline, "HELD_BYTES", 1)
    again, other = run(make_config(tmp_path / "corpus", moved))
    assert again.fingerprint == manifest.fingerprint
    assert files_of(other) == files_of(storage)


def test_many_tasks_lose_nothing_and_give_the_same_corpus_each_time(
    sources: Path, tmp_path: Path, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PARTITION_BYTES", 12_000)
    monkeypatch.setattr(staging, "TOLD", 2)
    monkeypatch.setattr(reading, "TABLE_BYTES", 1_000)
    monkeypatch.setattr(dedup, "TASK_BYTES", 10_000)
    monkeypatch.setattr(pipeline, "PART_BYTES", 12_000)
    settings = {"rows_per_shard": 8}
    lines: list[str] = []
    manifest = prepare(make_config(tmp_path / "a", sources, **settings), lines.append)
    storage = open_storage(str(tmp_path / "a"))
    assert any("90 distinct documents in 3 domains, 0 documents dropped" in line for line in lines)
    assert sum("documents: " in line for line in lines) == 2
    assert any(re.fullmatch(r"encoded: (\d+) of \1 partitions", line) for line in lines)
    english = [s for s in manifest.split("train") if s.domain == "en"]
    assert len(english) > 2
    assert len({shard.path for shard in manifest.shards}) == len(manifest.shards)
    assert all(shard.rows <= 8 for shard in manifest.shards)
    every_document_is_there_once(manifest, storage, sources)
    again, _ = run(make_config(tmp_path / "b", sources, **settings))
    assert again.fingerprint == manifest.fingerprint


def test_long_documents_may_leave_parts_and_tasks_without_any(
    tmp_path: Path, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document's hash chooses its part, and one that is longer than a part leaves others empty."""
    monkeypatch.setattr(pipeline, "PART_BYTES", 2_000)
    (tmp_path / "raw").mkdir()
    texts = [" ".join(f"{i}x{j}" for j in range(2_000 if i == 0 else 50)) for i in range(5)]
    for number, text in enumerate(texts):
        (tmp_path / "raw" / f"{number}.txt").write_text(text)
    manifest, storage = run(make_config(tmp_path / "corpus", tmp_path / "raw"))
    assert len(manifest.index) <= 5 < pipeline.Division.of(Counter(manifest.text_bytes)).tasks
    every_document_is_there_once(manifest, storage, tmp_path / "raw")


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1))
def test_each_part_has_one_task_and_no_task_much_more_than_another(sizes: dict[str, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PART_BYTES", 30)
        division = pipeline.Division.of(Counter(sizes))
    parts = {(group, part) for group, count in division.parts.items() for part in range(count)}
    assert division.task.keys() == parts
    assert set(division.task.values()) == set(range(division.tasks))
    text = Counter[int]()
    for (group, _), task in division.task.items():
        text[task] += sizes[group] / division.parts[group]
    assert max(text.values()) <= 2 * 30


def test_the_shards_do_not_depend_on_how_the_texts_lie_in_files(
    prepared: tuple[Manifest, Storage], sources: Path, tmp_path: Path, make_config: Config
) -> None:
    manifest, _ = prepared
    records = [
        json.dumps({"text": document.text, "language": document.domain})
        for file in find_files([str(sources)])
        for document in read_documents(file)
    ]
    random.Random(0).shuffle(records)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text("\n".join(records[:50]))
    (tmp_path / "raw" / "b.jsonl").write_text("\n".join(records[50:]))
    again, _ = run(make_config(tmp_path / "corpus", tmp_path / "raw"))
    assert again.shards == manifest.shards


@pytest.mark.parametrize(("sample", "alpha"), [(1 << 30, 0.3), (8_000, 0.3), (8_000, 1.0)])
def test_the_tokenizer_sees_a_balanced_sample_of_the_train_split_and_nothing_held_out(
    sources: Path,
    tmp_path: Path,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    sample: int,
    alpha: float,
) -> None:
    monkeypatch.setattr(pipeline, "TOKENIZER_BYTES", sample)
    settings = {"held_out_share": 0.1, "vocabulary_size": 400, "tokenizer_alpha": alpha}
    manifest, storage = run(make_config(tmp_path / "corpus", sources, **settings))
    sizes = {
        domain: size
        for group, size in manifest.text_bytes.items()
        for split, domain in [group.split("/")]
        if split == "train"
    }
    shares = sample_shares(sizes, sample, alpha)
    found = [d for file in find_files([str(sources)]) for d in read_documents(file)]
    positions = {
        d.text: int.from_bytes(hashlib.sha256(d.text.encode()).digest()[:8]) for d in found
    }
    train = [d for d in found if positions[d.text] >= 0.1 * 2**64]
    drawn = [d.text for d in train if positions[d.text] % 2**32 < shares[d.domain] * 2**32]
    assert len(found) > len(train) >= len(drawn) > 0
    assert storage.read("tokenizer.json") == Tokenizer.train(drawn, 400).to_bytes()


def test_the_manifest_counts_what_is_there(
    prepared: tuple[Manifest, Storage], sources: Path
) -> None:
    manifest, _ = prepared
    texts = [d.text for f in find_files([str(sources)]) for d in read_documents(f)]
    assert sum(manifest.text_bytes.values()) == sum(len(text.encode()) for text in texts)
    assert sum(manifest.characters.values()) == sum(map(len, texts))
    groups = {f"{shard.split}/{shard.domain}" for shard in manifest.shards}
    assert groups == manifest.documents.keys() == manifest.text_bytes.keys()
    assert groups == manifest.characters.keys()
    assert sum(shard.size for shard in manifest.shards) > 0


def test_the_unigram_loss_is_that_of_the_rows_that_are_there(
    prepared: tuple[Manifest, Storage],
) -> None:
    manifest, storage = prepared
    counts = {}
    for split in ("train", "held_out"):
        counts[split] = np.zeros(manifest.vocabulary_size, dtype=np.int64)
        for pieces in pieces_of(manifest, storage, split).values():
            for piece, times in pieces.items():
                for token in piece[1:]:
                    counts[split][token] += times
    assert manifest.unigram_loss == unigram_loss(counts["train"], counts["held_out"])
    assert 2 < manifest.unigram_loss < np.log(manifest.vocabulary_size)


def test_held_out_documents_stay_held_out_when_the_corpus_grows(
    prepared: tuple[Manifest, Storage],
    tmp_path: Path,
    make_sources: Callable[..., Path],
    make_config: Config,
) -> None:
    manifest, storage = prepared
    grown, other = run(make_config(tmp_path / "c", make_sources(tmp_path / "sources", 45)))
    before = {split: texts_of(manifest, storage, split) for split in ("train", "held_out")}
    after = {split: texts_of(grown, other, split) for split in ("train", "held_out")}
    assert before["held_out"]
    assert not before["held_out"] & after["train"]
    assert not before["train"] & after["held_out"]
    assert sum(grown.documents.values()) == 135


def test_a_text_that_occurs_twice_is_kept_once_and_in_one_domain(
    tmp_path: Path, make_config: Config
) -> None:
    for path in ("en/a.txt", "en/b.txt", "de/c.txt"):
        (tmp_path / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / path).write_text("café\n" if path == "en/b.txt" else "cafe\u0301")
    (tmp_path / "raw" / "en" / "d.txt").write_text("another")
    lines: list[str] = []
    manifest = prepare(make_config(tmp_path / "corpus", tmp_path / "raw"), lines.append)
    domains = Counter({g.split("/")[1]: n for g, n in manifest.documents.items()})
    assert domains == {"de": 1, "en": 1}
    assert any("2 duplicates dropped" in line for line in lines)
    assert any("tokens a character; most in de" in line for line in lines)


def test_the_smallest_corpus_still_has_one_document_held_out(
    tmp_path: Path, make_config: Config
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": "sea"}\n{"text": "tide"}\n')
    corpus = make_config(tmp_path / "corpus", tmp_path / "raw", held_out_share=1e-9)
    manifest, _ = run(corpus)
    assert manifest.documents == {"held_out/raw": 1, "train/raw": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "alone"}', "that are kept, 1, fall to the held-out split"),
        ('{"text": " "}\n{"text": ""}', "hold no text"),
        ("", "hold no text"),
    ],
)
def test_input_that_leaves_nothing_to_train_on_is_refused(
    tmp_path: Path, make_config: Config, text: str, message: str
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text(text)
    with pytest.raises(CorpusError, match=message):
        run(make_config(tmp_path / "corpus", tmp_path / "raw"))


def test_input_that_the_rules_drop_whole_is_refused_with_their_reasons(
    tmp_path: Path, make_config: Config
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": "sea"}\n{"text": "tide"}\n')
    told = (
        r"all of the 2 documents were dropped by rules \(raw/a\.jsonl, line 1: words: 1, at least"
    )
    with pytest.raises(CorpusError, match=told):
        run(make_config(tmp_path / "corpus", tmp_path / "raw", clean=True))


def test_a_bad_line_is_named_through_ray_without_its_noise(
    tmp_path: Path, make_config: Config
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": "sea"}\n{"text": tide}\n')
    console = logging.StreamHandler(io.StringIO())
    logging.getLogger("ray.data").addHandler(console)
    try:
        with pytest.raises(CorpusError) as caught:
            run(make_config(tmp_path / "corpus", tmp_path / "raw"))
    finally:
        logging.getLogger("ray.data").removeHandler(console)
    expected = (
        f"1 of 2 records (50 %) can not be read: 1 in {tmp_path}/raw/a.jsonl (line 2: not JSON"
    )
    assert str(caught.value).startswith(expected)
    assert "raise corpus.max_bad_share above 0.01" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert console.stream.getvalue() == ""
    assert console.level == logging.NOTSET


def test_bad_records_below_the_share_are_left_out_counted_and_named(
    prepared: tuple[Manifest, Storage],
    sources: Path,
    tmp_path: Path,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, _ = prepared
    raw = tmp_path / sources.name
    shutil.copytree(sources, raw)
    (raw / "en" / "bad.jsonl").write_text('{"text": tide}\n' * 3 + '{"text": tide}')
    (raw / "en" / "torn.txt.gz").write_bytes(gzip.compress(b"the moon" * 99)[:-9])
    corpus = make_config(tmp_path / "corpus", raw)
    with pytest.raises(CorpusError, match=r"5 of 95 records \(5\.3 %\) can not be read"):
        run(corpus)
    lines: list[str] = []
    more = corpus.model_copy(update={"max_bad_share": 0.06})
    with monkeypatch.context() as patch:
        patch.setattr("panthalassa.corpus.encoding.write_shards", lambda *args: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run(more)
    with pytest.raises(CorpusError, match="5 of 95 records"):  # also when what was read is kept
        run(corpus)
    again = prepare(more, lines.append)
    [told] = [line for line in lines if "can not be read" in line]
    assert "5 of 95 records" in told
    assert f"4 in {raw}/en/bad.jsonl (line 1: not JSON" in told
    assert f"1 in {raw}/en/torn.txt.gz (" in told
    assert again.shards == manifest.shards


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that an S3 server on loopback serves as the bucket `sea`."""
    pytest.importorskip("localbucket")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "s3" / "sea"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "localbucket", str(folder.parent), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + 20
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the S3 server did not start"
        time.sleep(0.1)
    yield folder
    server.terminate()
    server.wait(10)


def test_a_corpus_in_object_storage_is_the_same_corpus(
    prepared: tuple[Manifest, Storage], sources: Path, bucket: Path, make_config: Config
) -> None:
    manifest, storage = prepared
    again, remote = run(make_config("s3://sea/corpora/small", sources))
    assert again.fingerprint == manifest.fingerprint
    assert files_of(remote) == files_of(storage)
    assert read_manifest(open_storage("s3://sea/corpora/small")) == manifest
    assert (bucket / "corpora" / "small" / "manifest.json").is_file()


def test_sources_in_object_storage_are_the_same_sources(sources: Path, bucket: Path) -> None:
    shutil.copytree(sources, bucket / "raw" / sources.name)
    local, remote = find_files([str(sources)]), find_files([f"s3://sea/raw/{sources.name}"])
    assert [(f.path, f.size, f.domain) for f in remote] == [
        (f.path, f.size, f.domain) for f in local
    ]
    assert [d.text for d in read_documents(remote[-1])] == [
        d.text for d in read_documents(local[-1])
    ]
