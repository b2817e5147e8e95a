"""Chats: messages come in, token ids go out, and which of them a model learns to say.

How a chat is written is the tokenizer's format (`corpus.chat_format`): ChatML for this platform's own,
the chat template for that of another model. What counts of an assistant's message is what follows the
prompt for it: its content, and the special token behind it, which ends the turn. White space around a
content goes where the format drops it. A text is never trusted: one that spells a special token gets
ordinary ones, of which transformers makes a special token.

Text between special tokens is encoded as a whole, as transformers does, but cut where an answer begins:
so what is trained goes on exactly where a prompt ends, also in an answer's past. A template that lets a
word reach over that place (none of those of the Llama family does) gives other ids in transformers,
which could not be asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from panthalassa.corpus.chat_format import Piece, Rendered, Slot, joined
from panthalassa.corpus.text_tokenizer import Place, TextTokenizer
from panthalassa.corpus.tokenizer import Tokens
from panthalassa.errors import ChatError

ANSWERING: Final = "assistant"
MOST_MESSAGES = 1000
"""Of a chat: what begins each of its answers is rendered, too, so time grows with the square."""
MOST_IMAGES = 1000
"""Of a message or a prompt."""
MEND = "put another template into chat_template.jinja beside the model's tokenizer.json"
Position = tuple[int, int]
"""The number of a piece, and a character of it."""
Images = Annotated[
    tuple[str, ...],
    Field(strict=False, max_length=MOST_IMAGES),
    BeforeValidator(lambda given: given or ()),
]


class Message(BaseModel):
    """What somebody says in a chat."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str
    images: Images = Field(default=(), exclude_if=lambda paths: not paths)
    """Paths of what a user shows, in front of what they say (`model.image_text`)."""

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.images and self.role != "user":
            raise ValueError("only a user shows images")
        return self


def encode_chat(
    tokenizer: TextTokenizer, messages: Sequence[Message], counting_from: int = 0
) -> tuple[Tokens, NDArray[np.bool_]]:
    """The ids of a chat [tokens], and whether each of them counts: those of the assistant's messages,
    from the message of that number on. Raises ChatError for a chat that the format does not have."""
    rendered = tokenizer.chat.whole(_shape(messages))
    ids: list[int] = []
    counted: list[bool] = []
    for part, found in _encoded(tokenizer, messages, rendered):
        ids += found
        counts = part.message is not None and part.message >= counting_from
        counted += [counts] * len(found)
    return np.array(ids, dtype=np.int32), np.array(counted, dtype=np.bool_)


def encode_prompt(tokenizer: TextTokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids of a chat up to where the assistant begins to speak. Raises ChatError when the format
    does not have the chat, or writes nothing of it."""
    rendered = tokenizer.chat.asked(_shape(messages))
    ids = [id for _, found in _encoded(tokenizer, messages, rendered) for id in found]
    if not ids:
        raise ChatError(f"the model's chat template writes nothing of this chat: {MEND}.")
    return ids


def encode_question(tokenizer: TextTokenizer, text: str, system: str | None = None) -> list[int]:
    """The ids of a chat in which a user says `text`, behind what the system says, up to the answer."""
    before = [Message(role="system", content=system)] if system else []
    return encode_prompt(tokenizer, [*before, Message(role="user", content=text)])


def encode_answer(
    tokenizer: TextTokenizer, question: str, answer: str
) -> tuple[list[int], list[int]]:
    """The ids of a question, and those of an answer without what ends it, but with what the template
    writes between the question's prompt and the answer, or behind it: likelihoods include that."""
    chat = [Message(role="user", content=question), Message(role=ANSWERING, content=answer)]
    ids, counted = encode_chat(tokenizer, chat)
    first = int(counted.argmax())
    return ids[:first].tolist(), ids[counted][:-1].tolist()


def check_format(tokenizer: TextTokenizer) -> None:
    """Raises ChatError for a format that has no question and answer."""
    encode_answer(tokenizer, "a", "b")


def question_frame(tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """The ids before and behind what a user says in a question."""
    pieces = tokenizer.chat.asked((("user", True),)).pieces
    at = next((i for i, piece in enumerate(pieces) if isinstance(piece, Slot)), None)
    if at is None:
        raise ChatError(f"the model's chat template leaves out what a user says: {MEND}.")
    before, _ = encode_pieces(tokenizer, pieces[:at], (), Place.START)
    behind, _ = encode_pieces(tokenizer, pieces[at + 1 :], (), Place.WITHIN)
    return before, behind


@dataclass(frozen=True)
class _Part:
    """Pieces of a chat: what the assistant says in `message`, or what is around that."""

    pieces: tuple[Piece, ...]
    message: int | None


def _encoded(
    tokenizer: TextTokenizer, messages: Sequence[Message], rendered: Rendered
) -> Sequence[tuple[_Part, list[int]]]:
    """The parts of a chat with their ids."""
    found, place = [], Place.START
    for part in _parts(tokenizer, messages, rendered):
        ids, place = encode_pieces(tokenizer, part.pieces, messages, place)
        found.append((part, ids))
    return found


def _parts(
    tokenizer: TextTokenizer, messages: Sequence[Message], rendered: Rendered
) -> Sequence[_Part]:
    _check(messages, rendered)
    shape, pieces = _shape(messages), rendered.pieces
    parts, done = [], (0, 0)
    for number, (role, says) in enumerate(shape):
        if role == ANSWERING:
            begin = _behind(pieces, tokenizer.chat.asked(shape[:number]).pieces)
            end = _end_of_turn(tokenizer, pieces, begin, number if says else None)
            parts.append(_Part(_between(pieces, done, begin), None))
            parts.append(_Part(_between(pieces, begin, end), number))
            done = end
    return [*parts, _Part(_between(pieces, done, (len(pieces), 0)), None)]


def _check(messages: Sequence[Message], rendered: Rendered) -> None:
    """Raises ChatError for contents of which the template would make something else."""
    for number, message in enumerate(messages):
        for searched in rendered.searched:
            if searched in message.content:
                raise ChatError(
                    f"message {number + 1} holds {searched!r}, to which the model's chat template does "
                    "something of its own: that is not supported. Leave it out."
                )


def _between(pieces: Sequence[Piece], start: Position, end: Position) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for index in range(start[0], min(end[0] + 1, len(pieces))):
        piece = pieces[index]
        if isinstance(piece, str):
            first = start[1] if index == start[0] else 0
            found.append(piece[first : end[1] if index == end[0] else None])
        elif index < end[0]:
            found.append(piece)
    return joined(found)


def _behind(pieces: Sequence[Piece], prompt: Sequence[Piece]) -> Position:
    """Where a chat goes on behind the prompt that it begins with. Raises ChatError when it does not."""
    *same, last = prompt or ("",)
    index = len(same)
    if list(pieces[:index]) == same and index < len(pieces):
        there = pieces[index]
        if isinstance(there, str) and isinstance(last, str) and there.startswith(last):
            return index, len(last)
        if there == last:
            return index + 1, 0
    raise ChatError(
        "the model's chat template does not put an answer behind what it asks with: it writes what is "
        "before it in another way when the answer is there, as some do with what the system says. "
        f"Leave that out, or {MEND}."
    )


def _end_of_turn(
    tokenizer: TextTokenizer, pieces: Sequence[Piece], start: Position, number: int | None
) -> Position:
    """Where the special token ends that is first behind the content of a message, which is the first
    content from `start` on; None: there is none. Raises ChatError when there is no such token."""
    said, first = number is None, start[1]
    for index in range(start[0], len(pieces)):
        piece = pieces[index]
        if isinstance(piece, Slot):
            if said or piece.message != number:
                break
            said = True
        elif said and (special := tokenizer.find_special(piece[first:])):
            return index, first + special[0].end
        first = 0
    raise ChatError(
        "the model's chat template puts no special token behind what the assistant says, or leaves that "
        f"out: a model could not learn where to end. To mend it, {MEND}."
    )


def encode_pieces(
    tokenizer: TextTokenizer, pieces: Sequence[Piece], messages: Sequence[Message], place: Place
) -> tuple[list[int], Place]:
    """The ids of pieces with the messages' contents, and where text behind them stands."""
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, Slot):
            text += piece.filled(messages[piece.message].content)
            continue
        end = 0
        for special in tokenizer.find_special(piece):
            if text := text + piece[end : special.start]:
                ids += tokenizer.encode(text, place)
            ids.append(special.id)
            text, end, place = "", special.end, Place.BEHIND_SPECIAL
        text += piece[end:]
    if text:
        ids += tokenizer.encode(text, place)
        place = Place.WITHIN
    return ids, place


def _shape(messages: Sequence[Message]) -> tuple[tuple[str, bool], ...]:
    return tuple((message.role, bool(message.content.strip())) for message in messages)
