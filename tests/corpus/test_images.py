"""An image is prepared once, as its header and tags say, or refused with what is wrong."""

import io
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import bomb, file_of, moving, picture
from PIL import ExifTags, Image

from panthalassa.corpus.images import BadImage, Limits, encoded, fitted, pixels, prepared

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8)
UPRIGHT = CORNERS.repeat(8, axis=0).repeat(8, axis=1)

# How pixels lie in a file that a viewer turns back, by EXIF's number.
STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: up[::-1, ::-1].transpose(1, 0, 2),
    8: lambda up: np.rot90(up, -1),
}


def saved(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def rule_of(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(BadImage) as refused:
        prepared(data, 16, limits or Limits())
    assert str(refused.value)
    return refused.value.rule


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_turned_as_its_orientation_says(number: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    stored = np.ascontiguousarray(STORED[number](UPRIGHT))
    how = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = saved(Image.fromarray(stored), kind, exif=exif, **how[kind])
    assert np.abs(fitted(data, 16).astype(int) - UPRIGHT).max() <= 4


def test_a_damaged_tag_leaves_a_sound_picture() -> None:
    data = saved(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0" + b"no tags at all")
    assert (fitted(data, 16) == UPRIGHT).all()


def test_the_aspect_ratio_stays_and_the_rest_is_white() -> None:
    found = fitted(file_of(np.full((10, 40, 3), RED, np.uint8)), 16)
    assert (found[:6] == WHITE).all()
    assert (found[6:10] == RED).all()
    assert (found[10:] == WHITE).all()
    assert fitted(file_of(np.zeros((1, 4000, 3), np.uint8)), 16).shape == (16, 16, 3)


def test_transparency_is_laid_on_white() -> None:
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[:, 8:] = (255, 0, 0, 128)
    found = fitted(saved(Image.fromarray(layer)), 16)
    assert (found[:, :8] == WHITE).all()
    assert np.abs(found[:, 8:].astype(int) - (255, 127, 127)).max() <= 1

    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (8, 0, 16, 16))
    found = fitted(saved(palette, transparency=0), 16)
    assert (found[:, :8] == WHITE).all()
    assert (found[:, 8:] == BLUE).all()

    grey = Image.merge("LA", (Image.new("L", (16, 16), 90), Image.new("L", (16, 16), 0)))
    assert (fitted(saved(grey), 16) == WHITE).all()


def test_other_modes_become_rgb() -> None:
    deep = np.full((16, 16), 0x8000, np.uint16)
    assert (fitted(saved(Image.fromarray(deep)), 16) == 0x80).all()
    inks = Image.merge("CMYK", [Image.new("L", (16, 16), ink) for ink in (0, 255, 255, 0)])
    found = fitted(saved(inks, "JPEG", quality=100), 16).astype(int)
    assert np.abs(found - RED).max() <= 4
    assert (fitted(saved(Image.new("1", (16, 16), 1)), 16) == WHITE).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_what_moves_is_refused_and_one_frame_is_not(kind: str) -> None:
    assert rule_of(moving(kind)) == "image-animated"
    assert fitted(file_of(picture(0), kind), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@settings(max_examples=25)
@given(share=st.floats(0.0, 0.9))
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    data = file_of(picture(1, 64, 64), kind)
    assert rule_of(data[: int(share * len(data))]) == "image-unreadable"


def test_the_bytes_tell_the_kind_and_others_are_refused() -> None:
    assert rule_of(b"") == "image-unreadable"
    assert rule_of(b"GIF89a") == "image-unreadable"
    assert rule_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "image-unreadable"
    assert rule_of(saved(Image.fromarray(UPRIGHT), "TIFF")) == "image-unreadable"


@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
def test_no_bytes_raise_anything_else(noise: bytes, kind: str) -> None:
    data = bytearray(file_of(picture(2), kind))
    at = len(noise) % len(data)
    data[at : at + len(noise)] = noise
    with suppress(BadImage):
        assert len(pixels(prepared(bytes(data), 16), 16)) == 16


def test_limits_hold_before_anything_is_decoded() -> None:
    assert rule_of(bomb(30_000, 30_000)) == "image-too-large"
    assert rule_of(bomb(10_000, 8_000)) == "image-too-large"
    assert rule_of(bomb(100, 100), Limits(max_pixels=9_999)) == "image-too-large"
    assert rule_of(bomb(100, 100), Limits(max_bytes=50)) == "image-too-large"


def test_a_reason_tells_the_limit_asked_for_and_no_address() -> None:
    with pytest.raises(BadImage, match="more than 77 pixels"):
        fitted(bomb(30_000, 30_000), 16, Limits(max_pixels=77))
    for data in (b"no image", b"GIF89a", b"", file_of(picture(1))[:-700]):
        with pytest.raises(BadImage) as refused:
            fitted(data, 16)
        assert "0x" not in str(refused.value)


def test_transparency_of_a_large_image_is_laid_on_white_in_strips() -> None:
    layer = np.random.default_rng(0).integers(0, 256, (150, 150, 4), dtype=np.uint8)
    ground = Image.new("RGBA", (150, 150), (*WHITE, 255))
    ground.alpha_composite(Image.fromarray(layer))
    assert (fitted(saved(Image.fromarray(layer)), 150) == np.asarray(ground.convert("RGB"))).all()


SCRIPT = """
import sys
from pathlib import Path
from panthalassa.corpus.images import BadImage, fitted

def most():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

data = sys.stdin.buffer.read()
before = most()
try:
    fitted(data, 16)
    rule = "none"
except BadImage as bad:
    rule = bad.rule
print(rule, most() - before)
"""


def memory_of(data: bytes) -> tuple[str, int]:
    """The rule by which an image is refused, or none, and the kilobytes that this takes at most."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=data, stdout=subprocess.PIPE, check=True, timeout=60
    )
    rule, kilobytes = done.stdout.decode().split()
    return rule, int(kilobytes)


def test_a_bomb_costs_no_memory() -> None:
    rule, kilobytes = memory_of(bomb(30_000, 30_000))
    assert rule == "image-too-large"
    assert kilobytes < 20_000


def test_transparency_takes_the_memory_of_the_image_once_more() -> None:
    image = Image.new("RGBA", (3000, 3000), (1, 2, 3, 100))
    rule, kilobytes = memory_of(saved(image))
    assert rule == "none"
    assert kilobytes < 3 * 4 * 3000 * 3000 / 1024


@given(st.integers(0, 1000), st.integers(1, 90), st.integers(1, 90), st.integers(16, 48))
def test_a_prepared_image_is_read_back(number: int, width: int, height: int, size: int) -> None:
    data = file_of(picture(number, width, height))
    once = prepared(data, size)
    assert prepared(data, size) == once
    found = pixels(once, size)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(once)))), "as Pillow reads it"
    into = np.zeros((3, size, size, 3), np.uint8)
    pixels(once, size, into[1])
    assert np.array_equal(into, [0 * found, found, 0 * found])
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - fitted(data, size)).mean() < 6


def test_what_is_no_prepared_image_of_the_size_is_refused() -> None:
    with pytest.raises(BadImage, match="16 × 16 pixels, expected 32 × 32"):
        pixels(encoded(UPRIGHT), 32)
    with pytest.raises(BadImage):
        pixels(encoded(UPRIGHT)[:200], 16)
    with pytest.raises(BadImage):
        pixels(file_of(picture(1, 16, 16), "PNG"), 16)


@given(st.data())
def test_damaged_prepared_images_raise_nothing_else(data: st.DataObject) -> None:
    file = bytearray(prepared(file_of(picture(2)), 16))
    for at in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=5)):
        file[at] = data.draw(st.integers(0, 255))
    into = np.full((3, 16, 16, 3), 7, np.uint8)
    with suppress(BadImage):
        pixels(bytes(file[: data.draw(st.integers(0, len(file)))]), 16, into[1])
    assert (into[::2] == 7).all(), "it writes nowhere else"
