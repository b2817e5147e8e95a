"""Google's emoji and their names in many languages, as image–text pairs to be prepared and asked about.

The pictures come from the npm package `emoji-datasource-google`, the names (of text to speech) from
`cldr-annotations-full`. Both are installed outside the repository, and PANTHALASSA_EMOJI names the
`node_modules` that they are in. Variants of skin tone share a name and are left out.

Languages take turns with the kinds of files that a preparation reads: Parquet, WebDataset, and JSONL
beside pictures. A text is the name behind a language's code, `de: Affe`, so that `de:` is a prompt for
a name in German. A language may see an emoji in several looks: moved, turned, in another size and in
slightly other colours.
"""

import hashlib
import io
import json
import math
import os
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demos import write_records
from PIL import Image

from panthalassa.corpus.image_hash import Signatures, near, signature
from panthalassa.corpus.images import fitted

VARIABLE = "PANTHALASSA_EMOJI"
PACKAGES = {"emoji-datasource-google": "16.0.0", "cldr-annotations-full": "48.2.0"}
LICENSES = "Apache-2.0 (picture), Unicode-3.0 (name)"
LANGUAGES = (
    *("en", "de", "fr", "es", "pt", "it", "pl", "fi", "tr", "vi"),
    *("ru", "uk", "el", "ar", "he", "hi", "th", "ja", "ko", "zh"),
)
"""Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai, Japanese, Korean and Chinese."""
SQUARES = 64
"""Pixels of the pictures' sides."""
HELD_OUT = 0.1
"""Share of the groups of near pictures that no model learns from."""
NEAR_BITS = 24
"""Of 256 of a difference hash: pictures that differ in no more are on one side of the split."""
VARIATION = "\ufe0f"
"""Asks for a coloured picture; CLDR leaves it out."""


@dataclass(frozen=True)
class Emoji:
    code: str
    """Code points in hexadecimal, as its picture's file is named."""
    picture: bytes
    """PNG."""
    names: dict[str, str]
    """By language."""


def folder() -> Path:
    """Where the packages are; the test skips when the variable does not say so."""
    place = Path(os.environ.get(VARIABLE, ""))
    if not os.environ.get(VARIABLE) or not all((place / name).is_dir() for name in PACKAGES):
        wanted = " ".join(f"{name}@{version}" for name, version in PACKAGES.items())
        pytest.skip(f"{VARIABLE} names no node_modules with {wanted} (npm install)")
    return place


def read_emoji(root: Path, languages: Sequence[str] = LANGUAGES) -> list[Emoji]:
    """Every emoji that has a picture and a name in each of the languages, in the package's order."""
    package = root / "emoji-datasource-google"
    names = {language: _names(root, language) for language in languages}
    found = []
    for entry in json.loads((package / "emoji.json").read_bytes()):
        characters = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        spoken = {
            language: names[language].get(characters.replace(VARIATION, ""))
            for language in languages
        }
        known = {language: name for language, name in spoken.items() if name}
        if entry["has_img_google"] and len(known) == len(languages):
            file = package / "img" / "google" / str(SQUARES) / entry["image"]
            found.append(Emoji(Path(entry["image"]).stem, file.read_bytes(), known))
    return found


def _names(root: Path, language: str) -> dict[str, str]:
    """What each emoji is called, without variations."""
    file = root / "cldr-annotations-full" / "annotations" / language / "annotations.json"
    annotated = json.loads(file.read_bytes())["annotations"]["annotations"]
    return {
        characters.replace(VARIATION, ""): entry["tts"][0]
        for characters, entry in annotated.items()
        if entry.get("tts")
    }


def split(found: Sequence[Emoji]) -> tuple[list[Emoji], list[Emoji]]:
    """What is learned, and what is held out in all languages. Near pictures stay together; a group is
    held out by the hash of its first code."""
    hashes = [signature(fitted(emoji.picture, SQUARES)) for emoji in found]
    bits, colours = (
        np.array([[*part] for part in parts], np.uint8) for parts in zip(*hashes, strict=True)
    )
    first = list(range(len(found)))
    for one, other in zip(*near(Signatures(bits, colours), NEAR_BITS), strict=True):
        old, new = sorted((first[one], first[other]), reverse=True)
        first = [new if group == old else group for group in first]
    sides: tuple[list[Emoji], list[Emoji]] = [], []
    for emoji, group in zip(found, first, strict=True):
        digest = hashlib.sha256(found[group].code.encode()).digest()
        sides[int.from_bytes(digest[:8]) < HELD_OUT * 2**64].append(emoji)
    return sides


def text_of(emoji: Emoji, language: str) -> str:
    return f"{prompt_of(language)} {emoji.names[language]}"


def prompt_of(language: str) -> str:
    return f"{language}:"


def varied(emoji: Emoji, look: str) -> Emoji:
    """Moved by up to 5 pixels, turned by up to 15 degrees, from 0.7 to 1.15 times as large, each colour
    up to 15 % stronger or weaker, drawn from the emoji's code and the look; both make its code."""
    draw = random.Random(f"{emoji.code} {look}")
    size, angle = draw.uniform(0.7, 1.15), math.radians(draw.uniform(-15, 15))
    across, down = (SQUARES / 2 + draw.uniform(-5, 5) for _ in range(2))
    cos, sin, middle = math.cos(angle) / size, math.sin(angle) / size, SQUARES / 2
    to_picture = (
        *(cos, sin, middle - cos * across - sin * down),
        *(-sin, cos, middle + sin * across - cos * down),
    )
    picture = Image.open(io.BytesIO(emoji.picture)).convert("RGBA")
    picture = picture.transform(
        picture.size, Image.Transform.AFFINE, to_picture, Image.Resampling.BILINEAR
    )
    strengths = [draw.uniform(0.85, 1.15) for _ in "RGB"]
    colours = [
        band.point(
            [min(255, max(0, round(255 - strength * (255 - value)))) for value in range(256)]
        )
        for band, strength in zip(picture.split(), strengths, strict=False)
    ]
    file = io.BytesIO()
    Image.merge("RGBA", [*colours, picture.getchannel("A")]).save(file, "PNG")
    return replace(emoji, code=f"{emoji.code}-{look}", picture=file.getvalue())


def write_pairs(found: Sequence[Emoji], sources: Path, looks: Mapping[str, int] = {}) -> None:
    """A file of each language, in one of three kinds, below `sources`.

    looks: in how many each emoji is seen by a language; one that is not named sees it as it is.
    """
    languages = list(found[0].names)
    for kind, write in enumerate((_parquet, _webdataset, _json_lines)):
        for language in languages[kind::3]:
            names = [f"{language}{number}" for number in range(looks.get(language, 0))]
            seen = [varied(emoji, look) for emoji in found for look in names]
            write(seen or found, language, sources)


def _parquet(found: Sequence[Emoji], language: str, sources: Path) -> None:
    """As Hugging Face's datasets write images."""
    images = [{"bytes": emoji.picture, "path": f"{emoji.code}.png"} for emoji in found]
    columns = {
        "image": pa.array(images),
        "caption": [text_of(emoji, language) for emoji in found],
        "language": [language] * len(found),
        "license": [LICENSES] * len(found),
    }
    path = sources / "parquet" / f"{language}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _webdataset(found: Sequence[Emoji], language: str, sources: Path) -> None:
    path = sources / "webdataset" / f"{language}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for emoji in found:
            record = {
                "caption": text_of(emoji, language),
                "language": language,
                "license": LICENSES,
            }
            written = json.dumps(record, ensure_ascii=False).encode()
            for ending, data in (("png", emoji.picture), ("json", written)):
                member = tarfile.TarInfo(f"{emoji.code}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _json_lines(found: Sequence[Emoji], language: str, sources: Path) -> None:
    records = [
        {
            "image": f"{language}/{emoji.code}.png",
            "caption": text_of(emoji, language),
            "language": language,
            "license": LICENSES,
        }
        for emoji in found
    ]
    write_records(sources / "jsonl" / f"{language}.jsonl", records)
    write_pictures(found, sources / "jsonl" / language)


def write_pictures(found: Sequence[Emoji], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for emoji in found:
        (place / f"{emoji.code}.png").write_bytes(emoji.picture)
