"""Images that look the same have near hashes, and others have not."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import file_of, picture
from PIL import Image

from panthalassa.corpus.image_hash import BITS, Signatures, near, signature
from panthalassa.corpus.images import Pixels, fitted

DISTANCE = 8


def signatures(*images: Pixels) -> Signatures:
    bits, colours = zip(*(signature(image) for image in images), strict=True)
    return Signatures(
        np.frombuffer(b"".join(bits), np.uint8).reshape(len(images), -1),
        np.frombuffer(b"".join(colours), np.uint8).reshape(len(images), -1),
    )


def found(images: Signatures, distance: int = DISTANCE) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in np.transpose(near(images, distance)).tolist()}


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([80, 90, 95]), st.integers(96, 200))
def test_another_encoding_and_scale_is_near(number: int, quality: int, width: int) -> None:
    large = picture(number, 256, 256)
    smaller = np.asarray(Image.fromarray(large).resize((width, width), Image.Resampling.LANCZOS))
    images = [
        fitted(file_of(large), 64),
        fitted(file_of(large, "JPEG", quality=quality), 64),
        fitted(file_of(smaller), 64),
    ]
    assert found(signatures(*images)) >= {frozenset((0, 1)), frozenset((0, 2))}


def test_other_pictures_and_other_colours_are_not() -> None:
    assert not found(signatures(*(fitted(file_of(picture(n)), 64) for n in range(100))))
    heart = np.full((64, 64, 3), 255, np.uint8)
    blue = heart.copy()
    heart[20:40, 20:40] = (230, 30, 30)
    blue[20:40, 20:40] = (30, 30, 230)
    images = signatures(heart, blue)
    assert (images.bits[0] == images.bits[1]).all()
    assert not found(images)


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_all_pairs_within_the_distance_are_found(seed: int, distance: int) -> None:
    draw = np.random.default_rng(seed)
    bits = draw.integers(0, 2, (6, BITS), dtype=np.uint8)
    changed = bits.copy()
    for row, count in enumerate(draw.integers(0, 20, len(bits))):
        changed[row, draw.choice(BITS, count, replace=False)] ^= 1
    every = np.packbits(np.concatenate((bits, changed)), axis=1)
    images = Signatures(every, np.zeros((len(every), 12), np.uint8))
    apart = np.bitwise_count(every[:, None] ^ every[None]).sum(axis=2)
    wanted = {frozenset(pair) for pair in np.argwhere(apart <= distance).tolist()}
    assert found(images, distance) == {pair for pair in wanted if len(pair) == 2}


def test_flat_pictures_meet_without_comparing_all_pairs() -> None:
    flat = [np.full((16, 16, 3), 10 + n % 2 * 200, np.uint8) for n in range(2000)]
    pairs = near(signatures(*flat), DISTANCE)
    assert len(pairs[0]) < 20 * len(flat)
