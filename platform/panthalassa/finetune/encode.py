"""From an example to what of it goes into a row: its tokens, the runs that count, and what they say."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import Tokens
from panthalassa.finetune.chat import ANSWERING, encode_chat
from panthalassa.finetune.examples import Example, Messages


@dataclass(frozen=True)
class Encoded:
    """An example that fits into a row: its `documents`, and the runs that count in each of them.

    `position` decides what is held out (`Example.position`). `characters` and `text_bytes` (UTF-8) are
    those of all that is said, once.
    """

    domain: str
    place: str
    position: int
    documents: list[Tokens]
    answers: list[list[int]]
    characters: int
    text_bytes: int
    cut: bool

    @property
    def hash(self) -> bytes:
        """SHA-256 of the tokens and of what counts: equal for examples that teach the same."""
        digest = hashlib.sha256()
        for document, bounds in zip(self.documents, self.answers, strict=True):
            digest.update(np.array([len(document), len(bounds), *bounds], "<i4").tobytes())
            digest.update(document.astype("<i4").tobytes())
        return digest.digest()


def encode_example(tokenizer: TextTokenizer, example: Example, limit: int) -> Encoded | None:
    """An example in at most `limit` tokens; None when it has more.

    Each document ends with the last token that counts. A chat that is too long is cut behind the last
    answer that fits; a pair is not.
    """
    prompt, cut = example.prompt, False
    documents, answers, said = [], [], [prompt]
    for answer in example.answers:
        ids, counted = encode_chat(tokenizer, (*prompt, *answer), counting_from=len(prompt))
        bounds = runs(counted)
        if len(example.answers) == 1:
            fitting = [bound for run in _pairs(bounds) if run[1] <= limit for bound in run]
            cut, bounds = fitting != bounds, fitting
            answer = _begun(answer, len(bounds) // 2)
        documents.append(ids[: bounds[-1] if bounds else 0])
        answers.append(bounds)
        said.append(answer)
    if not all(answers) or sum(map(len, documents)) > limit:
        return None
    text = "".join(message.content for part in said for message in part)
    return Encoded(
        domain=example.domain,
        place=example.place,
        position=example.position,
        documents=documents,
        answers=answers,
        characters=len(text),
        text_bytes=len(text.encode()),
        cut=cut,
    )


def runs(counted: NDArray[np.bool_]) -> list[int]:
    """The runs of True as [start, end, start, end …]."""
    edges = np.diff(np.concatenate(([0], counted.view(np.int8), [0])))
    return [int(edge) for edge in np.flatnonzero(edges)]


def _pairs(bounds: list[int]) -> list[tuple[int, int]]:
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def _begun(messages: Messages, answers: int) -> Messages:
    """The messages to the answer of that number, from 1."""
    answering = [index for index, message in enumerate(messages, 1) if message.role == ANSWERING]
    return messages[: answering[answers - 1]] if answers else ()
