"""Images and captions that are made up, and the three kinds of sources that hold them."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from panthalassa.config_model import Vision

VISION = Vision(image_size=32, patch_size=8, hidden_size=16, layers=1, heads=2, ffn_size=32)
WORDS = {
    "en": ["a", "red", "boat", "on", "the", "quiet", "sea", "under", "clouds", "near", "trees"],
    "de": ["ein", "rotes", "Boot", "auf", "dem", "stillen", "Meer", "unter", "hohen", "Wolken"],
}


def picture(number: int, width: int = 40, height: int = 32) -> NDArray[np.uint8]:
    """A picture [height, width, 3] of its own for each number, with soft edges."""
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def file_of(pixels: NDArray[np.uint8], kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """The header of a large PNG, and few of its rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", rows), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def moving(kind: str = "GIF") -> bytes:
    """An animation of three frames."""
    frames = [Image.fromarray(picture(number)) for number in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=50)
    return buffer.getvalue()


def caption(number: int, language: str) -> str:
    draw = np.random.default_rng([number, len(language)])
    return f"{' '.join(draw.choice(WORDS[language], size=5))} {number}"


Pair = tuple[bytes | None, str | None, str | None]
"""The file of an image, a caption, and the language that is claimed."""


def pairs(numbers: Sequence[int], *languages: str) -> list[Pair]:
    return [
        (file_of(picture(number)), caption(number, language), language)
        for number in numbers
        for language in languages
    ]


def write_parquet(path: Path, rows: Sequence[Pair], struct: bool = False) -> None:
    images: list[Any] = [image for image, _, _ in rows]
    kind: pa.DataType = pa.binary()
    if struct:
        images = [{"bytes": image, "path": "a.png"} for image in images]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array(images, kind),
        "caption": pa.array([text for _, text, _ in rows], pa.string()),
        "language": pa.array([language for _, _, language in rows], pa.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_tar(path: Path, rows: Sequence[Pair]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, text, language) in enumerate(rows):
            told = {"caption": text, "language": language}
            files = {"png": image, "json": text and json.dumps(told).encode()}
            for ending, data in files.items():
                if data:
                    member = tarfile.TarInfo(f"train/{number:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_jsonl(path: Path, rows: Sequence[Pair]) -> None:
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, text, language) in enumerate(rows):
        name = f"images/{path.stem}-{number}.png"
        if image:
            (path.parent / name).write_bytes(image)
        line = {"image": name, "text": text, "language": language}
        lines.append(json.dumps({key: value for key, value in line.items() if value is not None}))
    path.write_text("\n".join(lines) + "\n")
