"""Examples: records of chats come in, checked, and what a model shall learn to say goes out.

A record for supervised fine-tuning is a chat, `messages`, or a `prompt` (a text, or messages) with its
`answer`, `completion` or `response`. One for preferences has a `chosen` and a `rejected` answer, each a
text, or messages with or without those of the prompt before them. Either may have a `system` message,
and a `language` or `domain`. A user's message of a chat may have `images`, paths of files in the folder
of the examples; a record with a text as its `prompt` has them beside it.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from panthalassa.corpus.documents import Problem, SourceFile, short
from panthalassa.corpus.formats.tables import Row, json_rows, parquet_rows
from panthalassa.corpus.manifest import Objective
from panthalassa.corpus.sources import path_safe
from panthalassa.finetune.chat import ANSWERING, MOST_MESSAGES, Images, Message

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Example:
    """A `prompt`, and behind it what counts: the rest of a chat, or a chosen and a rejected one."""

    prompt: Messages
    answers: tuple[Messages, ...]
    domain: str
    place: str

    @property
    def position(self) -> int:
        """64 bits of the prompt's hash, which alone decides what is held out: no prompt is on both
        sides."""
        told = json.dumps([[message.role, message.content] for message in self.prompt])
        return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8])

    @property
    def images(self) -> list[str]:
        """The paths of all images, in their order."""
        said = [message for part in (self.prompt, *self.answers) for message in part]
        return [path for message in said for path in message.images]


def read_examples(file: SourceFile, objective: Objective) -> Iterator[Example | Problem]:
    """The examples of a file of JSON lines or Parquet. Raises CorpusError when it can not be had."""
    parquet = file.path.lower().endswith(".parquet")
    rows = parquet_rows(file, tuple(_Record.model_fields)) if parquet else json_rows(file)
    try:
        for row in rows:
            yield _example(file, row, objective) if isinstance(row, Row) else row
    except OSError as error:
        yield Problem(file.place, f"damaged; the rest is lost: {error}")


def _example(file: SourceFile, row: Row, objective: Objective) -> Example | Problem:
    try:
        record = _Record.model_validate(row.columns)
        prompt, answers = _chat(record) if objective == "sft" else _pair(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        return Problem(row.place, f"`{key}` is {short(first['input'])}: {told}")
    except ValueError as error:
        return Problem(row.place, str(error))
    named = record.language or record.domain
    domain = path_safe(named) if named else file.domain
    return Example(prompt, answers, domain, row.place.removeprefix(f"{file.root}/"))


def _text(content: str) -> str:
    content.encode()  # JSON can spell half of a surrogate pair
    return unicodedata.normalize("NFC", content).strip()


class _Turn(Message):
    content: Annotated[str, AfterValidator(_text)]


def _said_by(role: str) -> BeforeValidator:
    """Takes a text for one message of that role."""

    def messages(given: Any) -> Any:
        if isinstance(given, str):
            return [{"role": role, "content": given}]
        if not isinstance(given, list):
            raise ValueError("expected a text or a list of messages")
        return given

    return BeforeValidator(messages)


_Said = Annotated[list[_Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
_Asked = Annotated[_Said, _said_by("user")]
_Answer = Annotated[_Said, _said_by(ANSWERING)]


class _Record(BaseModel):
    """A row in any of the forms; other columns do not matter."""

    model_config = ConfigDict(strict=True, frozen=True)

    messages: _Said | None = None
    system: Annotated[_Said, _said_by("system")] | None = None
    prompt: _Asked | None = None
    answer: _Answer | None = None
    completion: _Answer | None = None
    response: _Answer | None = None
    chosen: _Answer | None = None
    rejected: _Answer | None = None
    images: Images = ()
    image: Any = None
    domain: str | None = None
    language: str | None = None

    @field_validator("image")
    @classmethod
    def _is_a_list(cls, given: Any) -> None:
        if given is not None:
            raise ValueError("name images as `images`, a list of paths")


def _chat(record: _Record) -> tuple[Messages, tuple[Messages, ...]]:
    """Prompt and rest of a chat, which ends with its last answer. Raises ValueError."""
    answers = [said for said in (record.answer, record.completion, record.response) if said]
    if bool(record.messages) == bool(record.prompt or answers) or len(answers) > 1:
        raise ValueError(
            "expected `messages`, or `prompt` and one of `answer`, `completion` and `response`"
        )
    said = record.messages or record.prompt or []
    if record.images:
        if len(said) != 1 or said[0].images:
            raise ValueError("`images` stand beside a text as `prompt`, or in a message")
        said = [said[0].model_copy(update={"images": record.images})]
    chat = _checked([*(record.system or ()), *said])
    rest: Messages = _checked(answers[0]) if answers else ()
    answering = [i for i, message in enumerate([*chat, *rest]) if message.role == ANSWERING]
    first = len(chat) if answers else next(iter(answering), 0)
    if not answering or (record.prompt and not rest) or answering[-1] < first:
        raise ValueError("there is no answer: no message of the assistant that is to be learned")
    return (*chat, *rest)[:first], ((*chat, *rest)[first : answering[-1] + 1],)


def _pair(record: _Record) -> tuple[Messages, tuple[Messages, ...]]:
    """Prompt, chosen and rejected answer. Raises ValueError."""
    told = [*(record.prompt or ()), *(record.chosen or ()), *(record.rejected or ())]
    if record.images or any(turn.images for turn in told):
        raise ValueError("there are `images`, which preferences can not have")
    if not record.chosen or not record.rejected:
        raise ValueError("expected `prompt`, `chosen` and `rejected`")
    chosen, rejected = record.chosen, record.rejected
    if record.prompt:
        asked = [*(record.system or ()), *record.prompt]
        chosen, rejected = _behind(asked, chosen), _behind(asked, rejected)
    else:
        pairs = zip(chosen, rejected, strict=False)
        asked = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        chosen, rejected = chosen[len(asked) :], rejected[len(asked) :]
    if not asked:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` begin with none")
    if chosen == rejected:
        raise ValueError("`chosen` and `rejected` are the same")
    for said in (chosen, rejected):
        if not said or said[-1].role != ANSWERING:
            raise ValueError("`chosen` and `rejected` must end with an assistant's message")
        if said[0].role != ANSWERING:
            raise ValueError("`chosen` or `rejected` begins with another prompt than `prompt`")
    if not record.prompt:
        asked = [*(record.system or ()), *asked]
    return _checked(asked), (_checked(chosen), _checked(rejected))


def _behind(prompt: list[_Turn], said: list[_Turn]) -> list[_Turn]:
    """An answer without the prompt, which it may begin with, or with all of that but the system's."""
    for before in (prompt, [turn for turn in prompt if turn.role != "system"]):
        if said[: len(before)] == before:
            return said[len(before) :]
    return said


def _checked(messages: list[_Turn]) -> Messages:
    """The messages without empty ones of the system. Raises ValueError for those of the assistant."""
    if any(message.role == ANSWERING and not message.content for message in messages):
        raise ValueError("a message of the assistant is empty")
    return tuple(m for m in messages if m.content or m.role != "system")
