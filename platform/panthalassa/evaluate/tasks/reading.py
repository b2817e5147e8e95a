"""The door of evaluation files: lines and JSON come out checked, each with the place it is from."""

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.task import Item, Picture
from panthalassa.exchange.pictures import path_of
from panthalassa.storage import Storage

LINE_BYTES = 16 << 20
FILE_BYTES = 1 << 30
"""Of a JSON file that is one value."""

Row = TypeVar("Row", bound=BaseModel)


class Record(BaseModel):
    """An object of an evaluation file, which may have keys that are not read."""

    model_config = ConfigDict(frozen=True, strict=True)


def find(data: Storage, suffix: str) -> list[str]:
    """The files below `data` whose names end so. Raises PanthalassaError when there are none."""
    try:
        found = [path for path, _ in data.files() if path.endswith(suffix)]
    except OSError as error:
        raise PanthalassaError(f"evaluation data {data.uri} can not be read: {error}") from error
    if not found:
        raise PanthalassaError(f"evaluation data {data.uri} has no file *{suffix}")
    return found


def read_lines(data: Storage, path: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends, numbered from 1.

    Raises PanthalassaError for what is missing, no UTF-8, or longer than LINE_BYTES.
    """
    rest, number = b"", 0
    try:
        for chunk in data.chunks(path):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield number, _decoded(data, path, number, line)
            if len(rest) > LINE_BYTES:
                raise wrong(data, path, number + 1, f"longer than {LINE_BYTES >> 20} MiB")
    except OSError as error:
        raise PanthalassaError(f"evaluation file {data.uri}/{path}: {error}") from error
    if rest:
        yield number + 1, _decoded(data, path, number + 1, rest)


def _decoded(data: Storage, path: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise wrong(
            data, path, number, f"not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def read_objects(data: Storage, path: str, kind: type[Row]) -> Iterator[tuple[int, Row]]:
    """The objects of a JSONL file with the numbers of their lines; empty lines are skipped."""
    for number, line in read_lines(data, path):
        if not line.strip():
            continue
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            raise wrong(data, path, number, _first(error)) from None


def read_object(data: Storage, path: str, kind: type[Row]) -> Row:
    """A JSON file of one value."""
    try:
        if data.size(path) > FILE_BYTES:
            raise PanthalassaError(f"{data.uri}/{path} is larger than {FILE_BYTES >> 20} MiB")
        return kind.model_validate_json(data.read(path))
    except OSError as error:
        raise PanthalassaError(f"evaluation file {data.uri}/{path}: {error}") from error
    except ValidationError as error:
        raise PanthalassaError(f"evaluation file {data.uri}/{path}: {_first(error)}") from None


def picture(data: Storage, path: str, number: int, image: str) -> Picture:
    """The image that a line of a file names, relative to the file's folder, which it must be in.

    Raises PanthalassaError for one that is elsewhere, or not there.
    """
    try:
        found = path_of(data, posixpath.dirname(path), image)
        return Picture(f"{data.uri}/{found}", data.sha256(found))
    except ConfigError as error:
        raise wrong(data, path, number, str(error)) from error
    except FileNotFoundError as error:
        raise wrong(data, path, number, f"the image {image!r} is not there") from error
    except OSError as error:
        raise wrong(data, path, number, f"the image {image!r} can not be read: {error}") from error


def wrong(data: Storage, path: str, number: int, what: str) -> PanthalassaError:
    """What is not as expected in a line of a file."""
    return PanthalassaError(f"evaluation file {data.uri}/{path}, line {number}: {what}")


def limited(data: Storage, items: Iterable[Item], limit: int | None) -> Iterator[Item]:
    """Of each group the first `limit` items. Raises PanthalassaError when there are none at all."""
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.group] += 1
        if limit is None or seen[item.group] <= limit:
            yield item
    if not seen:
        raise PanthalassaError(f"the files of evaluation data {data.uri} hold no item")


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    key = ".".join(map(str, found["loc"]))
    value = json.dumps(found["input"], default=str)[:80]
    return f"{key}: {found['msg']}, found {value}" if key else str(found["msg"])
