"""Packing keeps every token once, in rows of one length."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.documents import Document
from panthalassa.corpus.pack import Packed, best_fit, pack
from panthalassa.corpus.sources import PYTHON_REFERENCE, find_files, read_documents
from panthalassa.corpus.tokenizer import Tokenizer

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
    packed = pack(documents, sequence_length, PAD).filled()
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


@given(st.lists(st.integers(1, 70), max_size=60), st.integers(1, 32))
def test_only_what_is_longer_than_a_row_is_cut_and_the_rest_of_it_is_marked(
    lengths: list[int], sequence_length: int
) -> None:
    """By offset and length, each document is put together again, whatever the order of the rows."""
    documents = documents_of(lengths)
    packed = pack(documents, sequence_length, PAD).shuffled(7).filled()
    pieces = pieces_of(packed)
    offsets = [offset for row in packed.offsets for offset in row]
    assert [len(row) for row in packed.offsets] == [len(row) for row in packed.lengths]
    begins = {piece[0] - offset for piece, offset in zip(pieces, offsets, strict=True)}
    assert begins == {int(document[0]) for document in documents}
    whole = Counter(len(piece) for piece, o in zip(pieces, offsets, strict=True) if o == 0)
    assert whole == Counter(min(length, sequence_length) for length in lengths)


@given(st.lists(st.integers(1, 32), max_size=60))
def test_a_row_has_less_space_left_than_the_piece_that_opened_the_next_is_long(
    lengths: list[int],
) -> None:
    """So that short pieces leave little, whatever their number: all but one row are full to them."""
    rows = [[lengths[index] for index in row] for row in best_fit(lengths, 32)]
    assert all(32 - sum(row) < following[0] for row, following in pairwise(rows))


def test_a_piece_goes_where_it_leaves_the_least_space() -> None:
    # 7 and 6 open two rows with 3 and 4 left; 3 fits both and fills the first.
    assert best_fit([6, 3, 7], 10) == [[2, 1], [0]]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=60), st.integers(0, 2**128 - 1))
def test_shuffling_keeps_rows_with_their_lengths(lengths: list[int], seed: int) -> None:
    packed = pack(documents_of(lengths), 32, PAD)
    shuffled = packed.shuffled(seed)
    assert Counter(pieces_of(shuffled.filled())) == Counter(pieces_of(packed.filled()))


def test_the_order_is_fixed_by_the_seed_and_another_seed_gives_another() -> None:
    packed = pack(documents_of([32] * 100), 32, PAD)
    first = packed.shuffled(1).filled().tokens[:, 0].tolist()
    assert first == packed.shuffled(1).filled().tokens[:, 0].tolist()
    assert first != packed.shuffled(2).filled().tokens[:, 0].tolist()
    assert first != packed.filled().tokens[:, 0].tolist()


def test_the_order_of_a_seed_never_changes_between_versions() -> None:
    packed = pack(documents_of([4] * 8), 4, PAD)
    order = ((packed.shuffled(7).filled().tokens[:, 0] - 10) // 4).tolist()
    assert order == [6, 3, 4, 0, 2, 7, 5, 1]


@given(st.lists(st.integers(1, 70), max_size=60), st.integers(1, 20))
def test_rows_are_laid_out_some_at_a_time_as_they_are_at_once(
    lengths: list[int], at_once: int
) -> None:
    packing = pack(documents_of(lengths), 16, PAD).shuffled(3)
    whole = packing.filled()
    for start in range(0, len(packing), at_once):
        some, expected = (
            packing.filled(start, start + at_once),
            whole.slice(start, start + at_once),
        )
        assert some.tokens.tolist() == expected.tokens.tolist()
        assert (some.lengths, some.offsets) == (expected.lengths, expected.offsets)


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """The 80 texts of Python's reference: 21 to 30,000 tokens, most of them some hundreds."""
    found = [d for file in find_files([PYTHON_REFERENCE]) for d in read_documents(file)]
    texts = [document.text for document in found if isinstance(document, Document)]
    tokenizer = Tokenizer.train(texts, 2048)
    return [tokenizer.encode_document(text) for text in texts]


@pytest.mark.parametrize("sequence_length", [256, 512, 1024])
def test_99_in_100_positions_are_used_by_real_documents(
    documents: list[np.ndarray], sequence_length: int
) -> None:
    packed = pack(documents, sequence_length, PAD).filled()
    assert sum(map(sum, packed.lengths)) >= 0.99 * packed.tokens.size


@pytest.mark.parametrize(("median", "deviation"), [(500, 1.0), (800, 1.2), (3000, 1.0)])
@pytest.mark.parametrize("sequence_length", [2048, 4096])
def test_99_in_100_positions_are_used_by_lengths_as_the_web_has_them(
    median: int, deviation: float, sequence_length: int
) -> None:
    """Log-normal ones, of which many or few are longer than a row."""
    draw = np.random.default_rng(0).lognormal(np.log(median), deviation, 2000)
    lengths = np.maximum(draw.astype(int), 3).tolist()
    packed = pack(documents_of(lengths), sequence_length, PAD).filled()
    assert sum(lengths) >= 0.99 * packed.tokens.size
