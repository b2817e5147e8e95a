"""Perceptual hashes: pixels come in, what of them survives another scale and encoding goes out.

A `Signature` is a difference hash (dHash: Krawetz, Kind of like that, 2013), a bit for each cell of a
coarse grey grid that says whether it grows lighter to the right, and a coarser grid of mean colours, for
a red heart and a blue one differ in nothing else. Images are near when both are. Candidates for that
have one band of their bits alike: of `distance` + 1 bands, at most `distance` bits apart, at least one
is untouched. So the work grows with the images and not with their pairs.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.images import Pixels
from panthalassa.corpus.minhash import candidates

GRID = 16
BITS = GRID * GRID
COLOURS = 8
LIGHTER = 2.0
"""Levels of grey of 255: less is the noise of an encoder on an even ground."""
COLOUR_DISTANCE = 2.0
"""Levels of 255, the mean over all cells and channels, up to which colours are the same. Drawings that
are encoded anew in JPEG of quality 75 differ by 1.5, in scale by less; skin tones of emoji by 3."""
AT_ONCE = 1 << 16
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

# One number for each bit: their sum is the key of a band. The raw stream never changes (NEP 19).
NUMBERS = np.random.PCG64(0).random_raw(BITS)


@dataclass(frozen=True)
class Signatures:
    """`bits` [n, BITS / 8] and `colours` [n, COLOURS² · 3] of n images, uint8."""

    bits: NDArray[np.uint8]
    colours: NDArray[np.uint8]


def signature(image: Pixels) -> tuple[bytes, bytes]:
    """The bits and the colours of an image [size, size, 3]."""
    grey = image @ GREY
    cells = _means(len(image), GRID) @ grey @ _means(len(image), GRID + 1).T
    bits = np.diff(cells, axis=1) > LIGHTER
    means = _means(len(image), COLOURS)
    rows = (means @ image.reshape(len(image), -1)).reshape(COLOURS, -1, 3)
    colours = (rows.transpose(0, 2, 1) @ means.T).transpose(0, 2, 1)
    return np.packbits(bits).tobytes(), np.rint(colours).astype(np.uint8).tobytes()


@cache
def _means(size: int, cells: int) -> NDArray[np.float64]:
    """Weights [cells, size] by which each cell is the mean of its part of so many pixels."""
    edges = np.linspace(0, size, cells + 1)
    starts, stops = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    overlap = np.minimum(stops, pixel + 1) - np.maximum(starts, pixel)
    weights: NDArray[np.float64] = np.maximum(overlap, 0.0) / (stops - starts)
    return weights


def near(found: Signatures, distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of images that differ in at most `distance` bits and hardly in their colours.

    In a band that many images share each is compared with those that follow in the order of bits.
    """
    count = len(found.bits)
    order = np.lexsort(found.bits.T[::-1])
    ordered = Signatures(found.bits[order], found.colours[order])
    keys, owners = _band_keys(ordered.bits, distance + 1)
    first, second = candidates(keys, owners)
    pairs = np.unique(owners[first] * count + owners[second])
    kept = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        kept.append(some[_alike(ordered, *np.divmod(some, count), distance)])
    a, b = np.divmod(np.concatenate(kept), max(1, count))
    return order[a], order[b]


def _band_keys(bits: NDArray[np.uint8], bands: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A key for each image and band, and the image; a band takes its bits from the whole picture, for
    the ground of a drawing has no detail."""
    count = len(bits)
    keys = np.empty((bands, count), dtype=np.uint64)
    for start in range(0, count, AT_ONCE):
        part = np.unpackbits(bits[start : start + AT_ONCE], axis=1).astype(np.uint64)
        for band in range(bands):
            some = part[:, band::bands] @ NUMBERS[band::bands]
            keys[band, start : start + AT_ONCE] = some + np.uint64(band)
    return keys.reshape(-1), np.tile(np.arange(count), bands)


def _alike(
    found: Signatures, first: NDArray[np.int64], second: NDArray[np.int64], distance: int
) -> NDArray[np.bool_]:
    apart = np.bitwise_count(found.bits[first] ^ found.bits[second]).sum(axis=1, dtype=np.int64)
    a, b = found.colours[first].astype(np.int16), found.colours[second].astype(np.int16)
    difference = np.abs(a - b).mean(axis=1)
    alike: NDArray[np.bool_] = (apart <= distance) & (difference <= COLOUR_DISTANCE)
    return alike
