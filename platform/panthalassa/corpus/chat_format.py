"""How a model's chats are written: the shape of a chat comes in, pieces of text with slots for what is
said go out.

A shape is the roles of the messages, and which of them say anything. So what is said never meets the
template, and a template's special tokens can be told from what only spells them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Shape = tuple[tuple[str, bool], ...]
"""Of each message the role, and whether its content has more than white space."""


@dataclass(frozen=True)
class Slot:
    """Where the content of a message goes; `left` and `right`: the characters that are dropped there, or
    None for all white space."""

    message: int
    left: str | None = None
    right: str | None = None

    def filled(self, content: str) -> str:
        """What stands there."""
        return content.lstrip(self.left).rstrip(self.right)


Piece = str | Slot


@dataclass(frozen=True)
class Rendered:
    """A chat in `pieces`, no two texts side by side. `searched`: texts that the template searches
    contents for, and does something of its own where one holds them."""

    pieces: tuple[Piece, ...]
    searched: frozenset[str] = frozenset()


class ChatFormat(Protocol):
    """What has a turn end with a special token, which is part of what is said."""

    def whole(self, shape: Shape) -> Rendered:
        """A chat. Raises ChatError for one that the format does not have."""

    def asked(self, shape: Shape) -> Rendered:
        """The same up to where the assistant begins to speak behind the last message."""


class ChatML:
    """The format of this platform's own tokenizers; `model.hugging_face.CHAT_TEMPLATE` says the same."""

    def whole(self, shape: Shape) -> Rendered:
        return Rendered(joined(self._pieces(shape)))

    def asked(self, shape: Shape) -> Rendered:
        return Rendered(joined([*self._pieces(shape), "<|im_start|>assistant\n"]))

    def _pieces(self, shape: Shape) -> list[Piece]:
        pieces: list[Piece] = ["<|bos|>"]
        for number, (role, says) in enumerate(shape):
            pieces.append(f"<|im_start|>{role}\n")
            pieces += [Slot(number)] if says else []
            pieces.append("<|im_end|>\n")
        return pieces


def joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same with texts that are side by side as one, and without empty ones."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        elif piece:
            found.append(piece)
    return tuple(found)
