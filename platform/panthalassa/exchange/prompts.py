"""Files of prompts: in as lines of text or of JSON, out as lines of JSON with what continues each."""

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panthalassa.errors import ConfigError
from panthalassa.storage import Storage, open_storage

LARGEST = 256 << 20
"""Bytes of a file of prompts."""
JSON_LINES = (".jsonl", ".ndjson")


class Prompt(BaseModel):
    """A line of JSON; what else it has stands in the result, too."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: str = Field(min_length=1)

    def result(self, text: str) -> str:
        """A line of JSON."""
        content = {**self.model_dump(mode="json"), "continuation": text}
        return json.dumps(content, ensure_ascii=False) + "\n"


def read_prompts(place: str) -> list[Prompt]:
    """The prompts of a local file or an `s3://` object: each line is one, or {"prompt": …} when its name
    ends with one of JSON_LINES. Raises ConfigError that names the line."""
    lines = _text(place).split("\n")  # and at nothing else, which JSON may hold within its strings
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(f"{place} holds no prompt: expected one a line")
    return [_prompt(place, number, line) for number, line in enumerate(lines, 1)]


def _prompt(place: str, number: int, line: str) -> Prompt:
    line = line.removesuffix("\r")
    if not line.strip():
        raise ConfigError(f"{place}, line {number} is empty: expected a prompt in every line")
    if not place.endswith(JSON_LINES):
        return Prompt(prompt=line)
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{place}, line {number}: {field + ': ' if field else ''}{first['msg']}; expected "
            '{"prompt": "…"}'
        ) from error


def _text(place: str) -> str:
    storage, name = _at(place)
    try:
        if (size := storage.size(name)) > LARGEST:
            raise ConfigError(f"{place} has {size:,} bytes, and prompts may have {LARGEST:,}")
        return storage.read(name).decode()
    except FileNotFoundError:
        raise ConfigError(f"{place}: there is no such file of prompts") from None
    except OSError as error:
        raise ConfigError(f"{place} can not be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is no UTF-8: {error}") from error


def write_results(place: str, lines: Sequence[str]) -> None:
    """Write them to a local file or an `s3://` object, whole. Raises ConfigError."""
    storage, name = _at(place)
    try:
        storage.write(name, "".join(lines).encode())
    except OSError as error:
        raise ConfigError(f"{place} can not be written: {error}") from error


def _at(place: str) -> tuple[Storage, str]:
    """The folder that a file is in, and its name."""
    folder, slash, name = place.rpartition("/")
    return open_storage(folder or slash or "."), name
