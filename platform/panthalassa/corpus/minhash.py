"""MinHash: texts come in, pairs of those that may be near-duplicates and their Jaccard go out.

All is pure, on columns, and the same in every process and on every machine: a text becomes its
tokens, the hashes of its shingles (SHINGLE tokens in a row), a signature of PERMUTATIONS minima,
and from that a key for each band. Two texts whose sets of shingles have the Jaccard similarity s
agree in a place of the signature with probability s, and in all `rows` places of one of `bands`
bands with 1 - (1 - s^rows)^bands. Sources: Broder, On the resemblance and containment of documents,
1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rensa import RMinHash

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

SHINGLE = 5  # tokens
PERMUTATIONS = 112
RECALL = 0.97  # of pairs that are just as similar as the threshold
SKETCH = 1024  # shingles of a document that a comparison sees: 4 KiB of them
REACH = 8  # documents of a band, behind each one, that it is compared with
SLICE_BYTES = 4 << 20  # text whose shingles are in memory at once

SEED = 1
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

# Scripts without spaces between words, by their names in RE2: each character is a token.
UNSPACED = (
    r"\p{Balinese}\p{Han}\p{Hiragana}\p{Javanese}\p{Katakana}\p{Khmer}\p{Lao}\p{Myanmar}"
    r"\p{New_Tai_Lue}\p{Tai_Le}\p{Tai_Tham}\p{Tai_Viet}\p{Thai}\p{Yi}"
)
SEPARATORS = r"[\p{P}\p{S}\p{Z}\p{C}]+"


@dataclass(frozen=True)
class Ragged:
    """Lists of hashes end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Any  # [hashes], unsigned
    offsets: Indices  # [lists + 1]

    @classmethod
    def join(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The lists of all parts, of 32 bits a hash."""
        values = np.concatenate([np.zeros(0, np.uint32), *(part.values for part in parts)])
        lengths = [np.zeros(0, np.int64), *(part.lengths() for part in parts)]
        return cls(values, _offsets(np.concatenate(lengths)))

    def lengths(self) -> Indices:
        return np.diff(self.offsets)

    def owners(self) -> Indices:
        """For each hash the list that it is in."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths())

    def keep(self, chosen: NDArray[np.bool_]) -> "Ragged":
        counts = np.bincount(self.owners()[chosen], minlength=len(self.offsets) - 1)
        return Ragged(self.values[chosen], _offsets(counts))

    def take(self, lists: Indices) -> "Ragged":
        offsets = _offsets(self.lengths()[lists])
        shift = np.repeat(self.offsets[lists] - offsets[:-1], np.diff(offsets))
        return Ragged(self.values[np.arange(offsets[-1]) + shift], offsets)


def choose_bands(threshold: float) -> tuple[int, int]:
    """Bands and rows: the longest rows that still find pairs at the threshold with RECALL.

    Longer rows make fewer candidates of pairs below the threshold. At 0.8 these are 16 bands of 7
    rows: 0.977 of pairs at 0.8, 0.998 at 0.85, 0.12 at 0.5.
    """
    fitting = [(PERMUTATIONS // r, r) for r in range(1, PERMUTATIONS + 1)]
    return next(
        (bands, rows)
        for bands, rows in reversed(fitting)
        if 1 - (1 - threshold**rows) ** bands >= RECALL
    )


def slices(texts: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """Start and stop of runs of texts that hold SLICE_BYTES, or one text that is longer."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy())
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
        yield start, stop
        start = stop


def shingles(texts: pa.Array) -> Ragged:
    """The hashes (64 bits) of the shingles of each text, with repetitions.

    Letter case, punctuation and white space do not count. A text of fewer tokens than a shingle is
    one shingle; one without any has none.
    """
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), SEPARATORS, " ")
    spaced = pc.replace_substring_regex(spaced, f"([{UNSPACED}])", r" \1 ")
    split = pc.split_pattern(pc.cast(pc.utf8_trim(spaced, " "), pa.large_string()), " ")
    tokens = hash_tokens(pc.list_flatten(split))
    words = Ragged(tokens, _offsets(pc.list_value_length(split).to_numpy())).keep(tokens != 0)
    place = np.arange(len(words.values))
    starts, ends = (np.repeat(o, words.lengths()) for o in (words.offsets[:-1], words.offsets[1:]))
    mixed = np.zeros(len(words.values), dtype=np.uint64)
    for ahead in range(SHINGLE):
        inside = place + ahead < ends
        token = np.where(inside, words.values[np.minimum(place + ahead, ends - 1)], np.uint64(0))
        mixed = mix(mixed * MULTIPLIER + token)
    whole = (place + SHINGLE <= ends) | (place == starts)
    return Ragged(mixed, words.offsets).keep(whole)


def hash_tokens(tokens: pa.Array) -> Hashes:
    """64 bits for each token, of which each different one is hashed once; 0 for an empty one."""
    encoded = tokens.dictionary_encode()
    hashes = np.array(
        RMinHash.hash_token_sets([encoded.dictionary.to_pylist()])[0], dtype=np.uint64
    )
    hashes = mix(hashes) | np.uint64(1)
    hashes[pc.equal(encoded.dictionary, "").to_numpy(zero_copy_only=False)] = 0
    found: Hashes = hashes[encoded.indices.to_numpy()]
    return found


def mix(values: Hashes) -> Hashes:
    """A bijection of 64 bits in which each bit depends on all: the finalizer of SplitMix64.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def signatures(sets: Ragged) -> NDArray[np.uint32]:
    """[sets, PERMUTATIONS]: repetitions and the order of a set do not count."""
    if not len(sets.offsets) - 1:
        return np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(sets.values), sets.offsets.astype(np.uint64), PERMUTATIONS, SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def band_keys(signature: NDArray[np.uint32], bands: int, rows: int) -> Hashes:
    """[texts, bands]: equal where all rows of that band are, and never for two different bands."""
    banded = signature[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), banded.shape[:2])
    for row in range(rows):
        keys = mix(keys * MULTIPLIER + banded[:, :, row])
    return keys


def text_keys(texts: pa.ChunkedArray, bands: int, rows: int) -> tuple[Indices, Hashes]:
    """[n] which texts have shingles, and [n, bands] their keys."""
    found, keys = [np.zeros(0, np.int64)], [np.zeros((0, bands), np.uint64)]
    for start, stop in slices(texts):
        sets = shingles(texts[start:stop].combine_chunks())
        some = sets.lengths() > 0
        kept = Ragged(sets.values, np.append(sets.offsets[:-1][some], sets.offsets[-1]))
        found.append(np.flatnonzero(some) + start)
        keys.append(band_keys(signatures(kept), bands, rows))
    return np.concatenate(found), np.concatenate(keys)


def key_lists(texts: pa.ChunkedArray, bands: tuple[int, int]) -> pa.ListArray:
    """A column with the keys of each text, for so many bands of so many rows; empty without shingles."""
    which, keys = text_keys(texts, *bands)
    lengths = np.zeros(len(texts), dtype=np.int64)
    lengths[which] = keys.shape[1]
    offsets = pa.array(_offsets(lengths), pa.int32())
    return pa.ListArray.from_arrays(offsets, keys.ravel())


def candidates(keys: Hashes, order: Indices) -> tuple[Indices, Indices]:
    """Pairs of rows with equal keys; `order` ranks the documents, the same one with the same number.

    In a band of up to REACH + 1 documents these are all pairs; in a larger one each document is
    paired with the REACH that follow it, so that the pairs grow with the documents and still
    connect them. The lesser one by `order` comes first.
    """
    by_key = np.lexsort((order, keys))
    keys = keys[by_key]
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for ahead in range(1, min(REACH, len(keys) - 1) + 1):
        same = np.flatnonzero(keys[ahead:] == keys[:-ahead])
        if not len(same):
            break
        first.append(by_key[same])
        second.append(by_key[same + ahead])
    return np.concatenate(first), np.concatenate(second)


def sketches(texts: pa.ChunkedArray) -> Ragged:
    """For each text the SKETCH least of its shingles' hashes (32 bits), ascending."""
    found = []
    for start, stop in slices(texts):
        sets = shingles(texts[start:stop].combine_chunks())
        keys = (sets.values >> np.uint64(32)).astype(np.uint32)
        owners = sets.owners()
        order = np.lexsort((keys, owners))
        keys, owners = keys[order], owners[order]
        new = np.ones(len(keys), dtype=bool)
        new[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
        distinct = Ragged(keys, sets.offsets).keep(new)
        rank = np.arange(len(distinct.values)) - np.repeat(
            distinct.offsets[:-1], distinct.lengths()
        )
        found.append(distinct.keep(rank < SKETCH))
    return Ragged.join(found)


def jaccard(first: Ragged, second: Ragged) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair of sketches, list by list.

    It is that of the shingles themselves for texts of less than SKETCH different ones. A fuller
    sketch knows its text only up to its greatest hash, and what both know is compared: a random
    part of all shingles, with a standard error of sqrt(s (1 - s) / SKETCH), 0.0125 at 0.8.
    """
    known = np.minimum(_known(first), _known(second))
    first, second = (s.keep(s.values <= known[s.owners()]) for s in (first, second))
    owners = np.concatenate((first.owners(), second.owners())).astype(np.uint64)
    values = np.concatenate((first.values, second.values)).astype(np.uint64)
    joint = np.sort((owners << np.uint64(32)) | values)
    twice = joint[1:][joint[1:] == joint[:-1]] >> np.uint64(32)
    shared = np.bincount(twice.astype(np.int64), minlength=len(known))
    union = first.lengths() + second.lengths() - shared
    similarity: NDArray[np.float64] = shared / np.maximum(union, 1)
    return similarity


def _known(sketch: Ragged) -> NDArray[np.uint32]:
    known = np.full(len(sketch.offsets) - 1, 2**32 - 1, dtype=np.uint32)
    full = sketch.lengths() >= SKETCH
    known[full] = sketch.values[sketch.offsets[1:][full] - 1]
    return known


def _offsets(counts: Any) -> Indices:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
