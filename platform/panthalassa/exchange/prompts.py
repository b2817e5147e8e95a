"""Prompts and chats to be answered, also in files: in as lines of text or of JSON, out as lines of JSON
with what continues each."""

import json
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.errors import ConfigError
from panthalassa.exchange.pictures import path_of
from panthalassa.finetune.chat import (
    MOST_IMAGES,
    MOST_MESSAGES,
    Message,
    encode_prompt,
    encode_question,
)
from panthalassa.model.image_text import USER, behind_bos, in_turns
from panthalassa.model.text import ids_of
from panthalassa.storage import Storage, open_storage

LARGEST = 256 << 20
"""Bytes of a file of prompts."""
JSON_LINES = (".jsonl", ".ndjson")


class Prompt(BaseModel):
    """A line of JSON: a `prompt`, with `images` in front of it, or `messages` that the assistant
    answers. Images are paths relative to the folder of the file. What else a line has stands in the
    result, too."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: str | None = None
    images: Annotated[tuple[str, ...], Field(max_length=MOST_IMAGES)] = ()
    messages: (
        Annotated[tuple[Message, ...], Field(min_length=1, max_length=MOST_MESSAGES)] | None
    ) = None

    @model_validator(mode="after")
    def _one_to_answer(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("there must be either a prompt or messages")
        if self.images and self.messages:
            raise ValueError("images stand beside a prompt, or in a message")
        if "" in self.images:
            raise ValueError("the path of an image is empty")
        if "image" in (self.model_extra or {}) and not self.images:
            raise ValueError("name images as `images`, a list of paths, and not as `image`")
        if self.prompt == "" and not self.images:
            raise ValueError("the prompt is empty")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of the messages must be a user's")
        return self

    def is_chat(self, chat: bool) -> bool:
        """Whether it is put in the chat format: messages are, and a prompt where that is asked for."""
        return chat or self.messages is not None

    def ids(
        self, tokenizer: TextTokenizer, chat: bool, system: str | None, tokens: int = 0
    ) -> list[int]:
        """What the model is given. chat: a prompt is what a user says, behind what `system` says.
        tokens: positions that an image takes."""
        if self.messages is not None:
            ids, shown = (
                encode_prompt(tokenizer, self.messages),
                [len(m.images) for m in self.messages],
            )
            return in_turns(ids, shown, tokens, tokenizer.encode(USER)) if any(shown) else ids
        assert self.prompt is not None
        images = len(self.images)
        if not chat:
            return behind_bos(ids_of(tokenizer, self.prompt), images, tokens)
        ids = encode_question(tokenizer, self.prompt, system)
        turns = [0, images] if system else [images]
        return in_turns(ids, turns, tokens, tokenizer.encode(USER)) if images else ids

    def result(self, text: str) -> str:
        """A line of JSON."""
        content = {**self.model_dump(mode="json", exclude_unset=True), "continuation": text}
        return json.dumps(content, ensure_ascii=False) + "\n"


def prompt_of(text: str, images: Sequence[str]) -> Prompt:
    """A prompt with images in front of it. Raises ConfigError for too many images, or an empty path."""
    try:
        return Prompt(prompt=text, images=tuple(images))
    except ValidationError as error:
        raise ConfigError(f"the prompt: {_wrong(error)}") from error


def read_prompts(place: str) -> list[Prompt]:
    """The prompts of a local file or an `s3://` object: each line is one, or the JSON of a
    Prompt when its name ends with one of JSON_LINES. Raises ConfigError that names the line."""
    lines = _text(place).split("\n")  # and at nothing else, which JSON may hold within its strings
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(f"{place} holds no prompt: expected one a line")
    return [_prompt(place, number, line) for number, line in enumerate(lines, 1)]


def image_places(prompt: Prompt, file: str | None) -> list[str]:
    """Where the images of a prompt are: in the folder of the file that it is from, or as they are named.

    Raises ConfigError for one outside of that folder.
    """
    told = [*prompt.images, *(path for said in prompt.messages or () for path in said.images)]
    if file is None:
        return told
    storage, _ = _at(file)
    return [f"{storage.uri}/{path_of(storage, '', image)}" for image in told]


def _prompt(place: str, number: int, line: str) -> Prompt:
    line = line.removesuffix("\r")
    if not line.strip():
        raise ConfigError(f"{place}, line {number} is empty: expected a prompt in every line")
    if not place.endswith(JSON_LINES):
        return Prompt(prompt=line)
    try:
        return Prompt.model_validate_json(line)
    except ValidationError as error:
        raise ConfigError(
            f"{place}, line {number}: {_wrong(error)}; expected "
            '{"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
        ) from error


def _wrong(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"


def _text(place: str) -> str:
    storage, name = _at(place)
    try:
        if (size := storage.size(name)) > LARGEST:
            raise ConfigError(f"{place} has {size:,} bytes, and prompts may have {LARGEST:,}")
        return storage.read(name).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{place}: there is no such file of prompts") from None
    except OSError as error:
        raise ConfigError(f"{place} can not be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is no UTF-8: {error}") from error


def check_results(place: str) -> None:
    """Raises ConfigError where results can not be written, or something is already."""
    storage, name = _at(place)
    if not name:
        raise ConfigError(f"{place} is no file: expected where results go, as in {place}out.jsonl")
    try:
        if storage.exists(name):
            raise ConfigError(f"{place} is there already: give results a place of their own")
        storage.create(name, b"")
        storage.delete(name)
    except OSError as error:
        raise ConfigError(f"{place} can not be written: {error}") from error


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
