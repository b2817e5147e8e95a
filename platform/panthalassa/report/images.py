"""Images and what the model says of them: files in the run's folder come in, cards of a page go out.

What `panthalassa generate --file` wrote to `generated/` in the run's folder is shown: JSON Lines of
{"prompt", "images", "continuation"}, perhaps with what was expected as `reference`. `images` are paths
from the folder of the file and lie within it. They go into the page as they are.
"""

import base64
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage

FOLDER = "generated"
MOST_IMAGES = 60
"""Groups of images that a page shows, the first of all files."""
LARGEST_FILE = 16 << 20
LARGEST_IMAGE = 1 << 20
FORMATS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
"""By the first bytes of a file."""


def _within(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError(f"{path!r} is no path within the folder of the file")
    return path


class Said(BaseModel):
    """A line of the file; other keys are not shown."""

    prompt: str = ""
    continuation: str
    reference: str = ""
    """What was expected; empty where that is not known."""
    images: Annotated[
        tuple[Annotated[str, AfterValidator(_within)], ...], Field(max_length=16)
    ] = ()


@dataclass(frozen=True)
class Card:
    """The images of a prompt, and what was said of them."""

    images: list[str]
    """As `data:` addresses."""
    said: list[Said]


@dataclass(frozen=True)
class Cards:
    cards: list[Card]
    left_out: int
    """More than a page shows."""


def images_of_run(run: Storage) -> Cards | None:
    """What a run's folder has of them; None when that is nothing. Raises PanthalassaError."""
    folder = run.below(FOLDER)
    try:
        said: dict[tuple[str, ...], list[Said]] = defaultdict(list)
        for name in _files(folder):
            place = PurePosixPath(name).parent
            for line in _lines(folder, name):
                if line.images:
                    said[tuple(str(place / image) for image in line.images)].append(line)
        shown = list(said.items())[:MOST_IMAGES]
        cards = [Card([_address(folder, path) for path in paths], lines) for paths, lines in shown]
    except OSError as error:
        raise PanthalassaError(
            f"what was generated at {folder.uri} can not be read: {error}"
        ) from error
    return Cards(cards, len(said) - len(cards)) if cards else None


def _files(folder: Storage) -> list[str]:
    try:
        return sorted(name for name, _ in folder.files() if name.endswith(".jsonl"))
    except FileNotFoundError:
        return []


def _lines(folder: Storage, name: str) -> list[Said]:
    """Those that are results: a file of prompts that lies there, too, has none."""
    _check_size(folder, name, LARGEST_FILE)
    found = []
    for number, line in enumerate(folder.read(name).splitlines(), 1):
        if b'"continuation"' not in line:
            continue
        try:
            found.append(Said.model_validate_json(line))
        except ValidationError as error:
            raise PanthalassaError(
                f"{folder.uri}/{name}, line {number} is no result of `panthalassa generate`: "
                f"{error.errors()[0]['msg']}. Write the file anew, or delete it."
            ) from error
    return found


def _address(folder: Storage, path: str) -> str:
    _check_size(folder, path, LARGEST_IMAGE)
    data = folder.read(path)
    kind = next((kind for start, kind in FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise PanthalassaError(f"{folder.uri}/{path} is no PNG, JPEG, GIF or WebP: it is not shown")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _check_size(folder: Storage, path: str, largest: int) -> None:
    if (size := folder.size(path)) > largest:
        raise PanthalassaError(
            f"{folder.uri}/{path} has {size:,} bytes, and {largest:,} are shown at most"
        )
