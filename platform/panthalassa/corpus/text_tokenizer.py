"""What a tokenizer is to fine-tuning, evaluation and generation, whoever made it."""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from panthalassa.corpus.chat_format import ChatFormat


class Place(Enum):
    """Where a text stands. SentencePiece puts a space before one, which is one thing for a whole text,
    another behind a special token, and wrong where a text goes on."""

    START = "start"
    BEHIND_SPECIAL = "behind special"
    WITHIN = "within"


class Special(NamedTuple):
    """A special token in a text, from its character `start` to before `end`."""

    id: int
    start: int
    end: int


class Decoder(Protocol):
    """Text of ids that come one after the other, in whole characters."""

    def add(self, id: int) -> str:
        """What is sure after this id, beyond what was before."""

    def end(self) -> str:
        """The rest, in which bytes that are no UTF-8 are U+FFFD."""


class TextTokenizer(Protocol):
    """Text comes in, ids go out, and the text comes back: `corpus.tokenizer.Tokenizer`, and
    `corpus.pretrained_tokenizer.PretrainedTokenizer`."""

    @property
    def bos(self) -> int | None:
        """None: the model has no such token."""

    @property
    def eos(self) -> int: ...

    @property
    def pad(self) -> int:
        """Fills rows. It is never attended to and never counts, so any id would do."""

    @property
    def beginning(self) -> Sequence[int]:
        """The ids before a text: `bos`, or none for a model that was trained without."""

    @property
    def ends(self) -> Sequence[int]:
        """One of these ends what a model says."""

    @property
    def vocabulary_size(self) -> int:
        """All ids are below."""

    @property
    def chat(self) -> ChatFormat: ...

    def encode(self, text: str, place: Place = Place.START) -> list[int]:
        """The ids of the text alone; none of a special token, whatever it spells."""

    def find_special(self, text: str) -> Sequence[Special]:
        """The special tokens that a text of a chat's format spells."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens vanish."""

    def decoder(self, before: Sequence[int] = ()) -> Decoder:
        """For ids behind those of `before`, whose text goes on."""

    def files(self) -> dict[str, bytes]:
        """`tokenizer.json`, and what belongs to it."""
