"""Of near-duplicates the best one is kept, whatever the order of documents, pairs and tasks."""

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.config import Corpus
from panthalassa.corpus import dedup, minhash
from panthalassa.corpus.components import (
    NODE_BYTES,
    Edges,
    both_ways,
    large_star,
    name_nodes,
    places,
    positions,
    positions_of,
    small_star,
    stars,
)
from panthalassa.corpus.minhash import (
    PERMUTATIONS,
    SHINGLE,
    candidates,
    choose_bands,
    jaccard,
    key_lists,
    shingles,
    signatures,
    sketches,
    text_keys,
)
from panthalassa.corpus.prepare import prepare

Pairs = list[tuple[int, int]]
TEXTS = st.lists(st.text(alphabet="ab é.ทะ海\n", max_size=40), min_size=1, max_size=12)
PAIRS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] != pair[1])
)


def column(texts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def names_of(texts: list[str], threshold: float = 0.8, partition: int = 0) -> pa.Table:
    """What deduplication is given of texts that are the rows of a partition."""
    digests = np.frombuffer(
        b"".join(hashlib.sha256(text.encode()).digest() for text in texts), np.uint8
    ).reshape(-1, 32)
    nodes = name_nodes([len(text.encode()) for text in texts], digests, partition, 0)
    keys = key_lists(column(texts), choose_bands(threshold))
    return pa.table({"name": dedup.name_column(nodes), "keys": keys})


def texts_in(partitions: list[list[str]]) -> dedup.Texts:
    return lambda partition, rows: column(partitions[partition]).take(rows)


def kept_of(texts: list[str], threshold: float = 0.8) -> list[str]:
    copies, worse = dedup.find_duplicates(names_of(texts, threshold), threshold, texts_in([texts]))
    dropped = {int(row) for nodes in (copies, worse) for row in places(nodes)[1]}
    assert len(dropped) == len(copies) + len(worse)
    return [text for index, text in enumerate(texts) if index not in dropped]


def edges_of(pairs: Pairs) -> Edges:
    digests = np.array([list(i.to_bytes(16) + bytes(16)) for i in range(31)], np.uint8)
    names = name_nodes([0] * 31, digests, 0, 0)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return names[ends[:, 0]], names[ends[:, 1]]


def roots_of(edges: Edges) -> dict[int, int]:
    u, v = (
        [int.from_bytes(bytes(n).ljust(24, b"\0")[8:24]) for n in nodes.tolist()] for nodes in edges
    )
    return dict(zip(u, v, strict=True))


def union_find(pairs: Pairs) -> dict[int, int]:
    """For every node that is not the least of its component, that one."""
    parent = {node: node for pair in pairs for node in pair}

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for u, v in pairs:
        a, b = sorted((root(u), root(v)))
        parent[b] = a
    return {node: root(node) for node in parent if root(node) != node}


def variants(seed: int, families: int, size: int) -> list[str]:
    """Families of texts of 200 random words, each with `size` near-duplicates that grow longer."""
    draw = random.Random(seed)
    texts = []
    for family in range(families):
        words = [f"w{draw.randrange(10**6)}" for _ in range(200)]
        texts += [" ".join([*words, *(f"tail{family}",) * n]) for n in range(size)]
    draw.shuffle(texts)
    return texts


# Shingles, signatures, bands.


def test_letter_case_punctuation_and_white_space_do_not_count() -> None:
    sets = shingles(
        pa.array(["The sea, the sea -- and the TIDE.", "the sea the\nsea and the tide"])
    )
    first, second = np.split(sets.values, [sets.offsets[1]])
    assert len(first) == 7 - SHINGLE + 1
    assert first.tolist() == second.tolist()


def test_scripts_without_spaces_are_shingled_by_character_and_marks_count() -> None:
    sets = shingles(pa.array(["ทะเลลึกและ", "海は深いです", "कि की कु के को कं", "कि की कु के कू कं"]))
    assert sets.lengths().tolist() == [10 - 4, 6 - 4, 2, 2]
    hindi = np.split(sets.values, sets.offsets[1:-1])[2:]
    assert not set(hindi[0]) & set(hindi[1])


def test_a_short_text_is_one_shingle_and_one_without_words_is_none() -> None:
    assert shingles(pa.array(["sea", "deep sea", "?!", ""])).lengths().tolist() == [1, 1, 0, 0]


@settings(max_examples=20)
@given(TEXTS, st.integers(1, 60))
def test_keys_do_not_depend_on_what_is_beside_a_text(texts: list[str], slice_bytes: int) -> None:
    together, keys = text_keys(column(texts), 16, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "SLICE_BYTES", slice_bytes)
        again, others = text_keys(column(texts), 16, 7)
    assert together.tolist() == again.tolist()
    assert keys.tolist() == others.tolist()
    for which, row in zip(together, keys, strict=True):
        assert text_keys(column([texts[which]]), 16, 7)[1].tolist() == [row.tolist()]


def test_signatures_are_the_same_in_every_process_and_version() -> None:
    code = (
        "import pyarrow as pa\n"
        "from panthalassa.corpus.minhash import shingles, signatures\n"
        "print(signatures(shingles(pa.array(['the sea is deep and the tide is slow 海'])))"
        "[0, :4].tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[3331556027, 3620415609, 3440112904, 2815496835]"


@given(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]))
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.97
    longer = PERMUTATIONS // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** longer < 0.97


@pytest.mark.parametrize("shared", [0.5, 0.8, 0.95])
def test_signatures_agree_as_often_as_the_sets_are_similar(shared: float) -> None:
    draw = np.random.default_rng(0)
    pairs = 400
    union = draw.integers(0, 2**64, (pairs, 200), dtype=np.uint64)
    common, own = int(200 * shared), (200 - int(200 * shared)) // 2
    parts = [union[:, : common + own], np.delete(union, np.s_[common : common + own], axis=1)]
    a, b = (
        signatures(minhash.Ragged(part.ravel(), np.arange(pairs + 1) * part.shape[1]))
        for part in parts
    )
    assert (a == b).mean() == pytest.approx(shared, abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), unique=True, max_size=30))
def test_all_pairs_of_a_small_band_are_candidates(rows: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    order = np.array([document for _, document in rows], dtype=np.int64)
    found = {(rows[i], rows[j]) for i, j in zip(*candidates(keys, order), strict=True)}
    expected = {(a, b) for a in rows for b in rows if a[0] == b[0] and a[1] < b[1]}
    assert found <= expected
    small = {k for k in range(4) if (keys == k).sum() <= minhash.REACH + 1}
    assert {pair for pair in expected if pair[0][0] in small} == {
        pair for pair in found if pair[0][0] in small
    }


def test_a_large_band_is_connected_by_pairs_that_grow_with_it() -> None:
    size = 500
    first, second = candidates(np.zeros(size, dtype=np.uint64), np.arange(size))
    assert len(first) < size * minhash.REACH
    assert len(union_find(list(zip(first.tolist(), second.tolist(), strict=True)))) == size - 1


@settings(max_examples=20)
@given(TEXTS, TEXTS)
def test_the_similarity_of_short_texts_is_exact(left: list[str], right: list[str]) -> None:
    size = min(len(left), len(right))
    one, other = left[:size], right[:size]
    found = jaccard(sketches(column(one)), sketches(column(other)))
    for a, b, similarity in zip(one, other, found, strict=True):
        x, y = set(shingles(pa.array([a])).values), set(shingles(pa.array([b])).values)
        assert similarity == (len(x & y) / len(x | y) if x | y else 0)


def test_the_similarity_of_long_texts_is_near() -> None:
    words = [f"w{i}" for i in range(60_000)]
    texts = [" ".join(words[start : start + 40_000]) for start in (0, 5_000, 10_000)]
    sketch = sketches(column(texts))
    assert sketch.lengths().tolist() == [minhash.SKETCH] * 3
    zeros, all_three = np.zeros(3, np.int64), np.arange(3)
    found = jaccard(sketch.take(zeros), sketch.take(all_three))
    assert found == pytest.approx([1, 35 / 45, 30 / 50], abs=0.05)


# Components.


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.binary(min_size=32, max_size=32))),
    st.integers(0, 2**32 - 1),
)
def test_nodes_sort_by_falling_length_and_then_by_hash_and_tell_the_place(
    rows: list[tuple[int, bytes]], partition: int
) -> None:
    digests = np.array([list(digest) for _, digest in rows], np.uint8).reshape(-1, 32)
    nodes = name_nodes([length for length, _ in rows], digests, partition, 7)
    assert positions(nodes).tolist() == [int.from_bytes(digest[:8]) for _, digest in rows]
    assert positions_of(digests).tolist() == positions(nodes).tolist()
    assert [found.tolist() for found in places(nodes)] == [
        [partition] * len(rows),
        [*range(7, 7 + len(rows))],
    ]
    by_rule = sorted((-length, digest[:16]) for length, digest in rows)
    order = np.argsort(nodes, kind="stable")
    assert [(-rows[i][0], rows[i][1][:16]) for i in order] == by_rule


@given(PAIRS, st.randoms(use_true_random=False))
def test_stars_are_the_components_of_a_union_find(pairs: Pairs, draw: random.Random) -> None:
    expected = union_find(pairs)
    shuffled = [draw.choice([(u, v), (v, u)]) for u, v in draw.sample(pairs, len(pairs))]
    assert roots_of(stars(edges_of(pairs))) == roots_of(stars(edges_of(shuffled))) == expected


@given(PAIRS, st.integers(1, 4))
def test_stars_in_turn_find_the_components_in_parts(pairs: Pairs, parts: int) -> None:
    def apart(step: Callable[[Edges], tuple[Edges, np.ndarray]], edges: Edges) -> tuple[Edges, int]:
        """The step on the edges of each part's nodes alone."""
        part = np.frombuffer(edges[0].tobytes(), np.uint8).reshape(-1, NODE_BYTES)[:, 23] % parts
        done = [step((edges[0][part == p], edges[1][part == p])) for p in range(parts)]
        u, v = (np.concatenate([found[end] for found, _ in done]) for end in (0, 1))
        return (u, v), sum(int(moved.sum()) for _, moved in done)

    edges = edges_of(pairs)
    for _ in range(20):
        edges, rewired = apart(large_star, both_ways(edges))
        edges, shrunk = apart(small_star, edges)
        if not rewired + shrunk:
            break
    assert not rewired + shrunk
    assert roots_of(edges) == union_find(pairs)


# Documents.


def test_the_longest_of_each_group_is_kept_and_nothing_else_is_lost() -> None:
    texts = variants(0, families=20, size=6)
    others = [f"{i}: a text of its own with number {i} in it" for i in range(30)]
    kept = kept_of(texts + others)
    assert sorted(kept) == sorted([t for t in texts if t.count("tail") == 5] + others)


def test_equally_long_near_duplicates_are_decided_by_their_hash() -> None:
    texts = ["the sea is deep", "The sea is deep", "THE SEA IS DEEP", "the sea, is dee"]
    best = min(texts[:3], key=lambda text: hashlib.sha256(text.encode()).digest())
    assert kept_of(texts) == [text for text in texts if text in (best, texts[3])]


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_decide(draw: random.Random) -> None:
    texts = variants(1, families=3, size=4)
    kept = {*kept_of(texts)}
    draw.shuffle(texts)
    assert {*kept_of(texts)} == kept


def test_documents_without_words_are_left_alone() -> None:
    texts = ["?!", "...", "😀"]
    assert kept_of(texts) == texts


def test_of_copies_the_first_is_kept_and_they_hide_no_near_duplicate() -> None:
    longer = " ".join(f"word{i}" for i in range(100))
    texts = [longer.replace("word0 ", "")] * 50 + [longer] + ["one"] * 3
    assert kept_of(texts) == [longer, "one"]
    copies, worse = dedup.find_duplicates(names_of(texts), 0.8, texts_in([texts]))
    assert sorted(places(copies)[1].tolist()) == [*range(1, 50), 52, 53]
    assert places(worse)[1].tolist() == [0]
    without, none = dedup.find_duplicates(names_of(texts), None, texts_in([texts]))
    assert (without.tolist(), len(none)) == (copies.tolist(), 0)


# On Ray.


@pytest.mark.parametrize(
    ("threshold", "buckets", "edges_at_once"),
    [(0.8, 3, 1 << 20), (0.8, 2, 0), (None, 2, 0)],
    ids=["components in one task", "components in many", "copies alone"],
)
def test_many_tasks_drop_the_same_documents_as_one(
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    threshold: float | None,
    buckets: int,
    edges_at_once: int,
) -> None:
    import ray.data

    monkeypatch.setattr(dedup, "EDGES_AT_ONCE", edges_at_once)
    monkeypatch.setattr(dedup, "TASK_BYTES", 3 << 20)
    texts = variants(2, families=12, size=12)
    partitions = [texts[:60], [*texts[60:], *texts[:30]]]
    tables = [names_of(part, partition=number) for number, part in enumerate(partitions)]
    whole = dedup.find_duplicates(pa.concat_tables(tables), threshold, texts_in(partitions))
    assert [len(nodes) for nodes in whole] == [30, 132 if threshold else 0]
    rows = dedup.find_duplicates_apart(
        ray.data.from_arrow(tables), threshold, texts_in(partitions), buckets
    ).take_all()
    found = [sorted(row["name"] for row in rows if row["copy"] is kind) for kind in (True, False)]
    assert found == [sorted(dedup.name_column(nodes).to_pylist()) for nodes in whole]


@pytest.mark.parametrize("texts", [[f"{i}: a text of its own, {i}" for i in range(20)], ["?!"]])
def test_documents_without_duplicates_all_stay(ray_cluster: str, texts: list[str]) -> None:
    import ray.data

    names = ray.data.from_arrow(names_of(texts))
    rows = dedup.find_duplicates_apart(names, 0.8, texts_in([texts]), 2).take_all()
    assert {row["name"] for row in rows} <= {None}


@pytest.mark.parametrize(("threshold", "kept", "dropped"), [(0.8, 3, 9), (None, 12, 0)])
def test_a_preparation_drops_near_duplicates_and_says_how_many(
    ray_cluster: str,
    tmp_path: Path,
    make_config: Callable[..., Corpus],
    threshold: float | None,
    kept: int,
    dropped: int,
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for index, text in enumerate(variants(3, families=3, size=4)):
        (raw / f"{index}.txt").write_text(text)
    lines: list[str] = []
    corpus = make_config(tmp_path / "corpus", raw, near_duplicates=threshold)
    manifest = prepare(corpus, lines.append)
    assert sum(manifest.documents.values()) == kept
    assert any(f", {dropped} near-duplicates dropped" in line for line in lines)
