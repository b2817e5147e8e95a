"""Packing keeps every token once, in rows of one length."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.pack import Packed, best_fit, pack

PAD = 2


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    """Documents whose tokens are all different, and none of them the padding."""
    starts = np.cumsum([10, *lengths])
    return [np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, lengths, strict=False)]


def pieces_of(packed: Packed) -> list[tuple[int, ...]]:
    pieces = []
    for row, lengths in zip(packed.tokens.tolist(), packed.lengths, strict=True):
        start = 0
        for length in lengths:
            pieces.append(tuple(row[start : start + length]))
            start += length
        assert row[start:] == [PAD] * (len(row) - start)
    return pieces


@given(st.lists(st.integers(1, 70), max_size=60), st.integers(1, 32))
def test_every_piece_of_every_document_is_in_exactly_one_row(
    lengths: list[int], sequence_length: int
) -> None:
    documents = documents_of(lengths)
    packed = pack(documents, sequence_length, PAD)
    expected = [
        tuple(document[start : start + sequence_length].tolist())
        for document in documents
        for start in range(0, len(document), sequence_length)
    ]
    assert packed.tokens.shape == (len(packed.lengths), sequence_length)
    assert packed.tokens.dtype == np.int32
    assert Counter(pieces_of(packed)) == Counter(expected)


@given(st.lists(st.integers(1, 32), max_size=60))
def test_no_two_rows_could_have_been_one(lengths: list[int]) -> None:
    filled = sorted(sum(lengths[i] for i in row) for row in best_fit(lengths, 32))
    assert all(a + b > 32 for a, b in pairwise(filled))


def test_a_piece_goes_where_it_leaves_the_least_space() -> None:
    # 7 and 6 open two rows with 3 and 4 left; 3 fits both and fills the first.
    assert best_fit([6, 3, 7], 10) == [[2, 1], [0]]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=60), st.integers(0, 2**128 - 1))
def test_shuffling_keeps_rows_with_their_lengths(lengths: list[int], seed: int) -> None:
    packed = pack(documents_of(lengths), 32, PAD)
    shuffled = packed.shuffled(seed)
    assert Counter(pieces_of(shuffled)) == Counter(pieces_of(packed))


def test_the_order_is_fixed_by_the_seed_and_another_seed_gives_another() -> None:
    packed = pack(documents_of([32] * 100), 32, PAD)
    first = packed.shuffled(1).tokens[:, 0].tolist()
    assert first == packed.shuffled(1).tokens[:, 0].tolist()
    assert first != packed.shuffled(2).tokens[:, 0].tolist()
    assert first != packed.tokens[:, 0].tolist()


def test_the_order_of_a_seed_never_changes_between_versions() -> None:
    packed = pack(documents_of([4] * 8), 4, PAD)
    order = ((packed.shuffled(7).tokens[:, 0] - 10) // 4).tolist()
    assert order == [6, 3, 4, 0, 2, 7, 5, 1]
