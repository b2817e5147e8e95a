"""From an example to what of it goes into a row: its tokens, the runs that count, and what they say."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.pairs import PREFIX
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import Tokenizer, Tokens
from panthalassa.finetune.chat import ANSWERING, encode_chat
from panthalassa.finetune.examples import Example, Messages
from panthalassa.model.image_text import USER, in_turns, is_image


@dataclass(frozen=True)
class Encoded:
    """An example that fits into a row: its `documents`, and the runs that count in each of them.

    `position` is that of its prompt (`Example.position`). `characters` and `text_bytes` (UTF-8) are
    those of all that is said, once. `images` are the encoded images of each document, in order, and
    `shown` are 64 bits of the hash of each of them.
    """

    domain: str
    place: str
    position: int
    documents: list[Tokens]
    answers: list[list[int]]
    characters: int
    text_bytes: int
    cut: bool
    images: list[list[bytes]]
    shown: frozenset[int]

    @property
    def hash(self) -> bytes:
        """SHA-256 of tokens, of what counts and of images: equal for examples that teach the same."""
        digest = hashlib.sha256()
        for document, bounds in zip(self.documents, self.answers, strict=True):
            digest.update(np.array([len(document), len(bounds), *bounds], "<i4").tobytes())
            digest.update(document.astype("<i4").tobytes())
        for image in chain.from_iterable(self.images):
            digest.update(hashlib.sha256(image).digest())
        return digest.digest()


def encode_example(
    tokenizer: TextTokenizer,
    example: Example,
    limit: int,
    images: Sequence[bytes] = (),
    tokens: int = 0,
) -> Encoded | None:
    """An example in at most `limit` tokens; None when it has more.

    Each document ends with the last token that counts. A chat that is too long is cut behind the last
    answer that fits; a pair is not. images: of the example, encoded, each of which takes so many
    `tokens`.
    """
    prompt, cut = example.prompt, False
    documents, answers, said = [], [], [prompt]
    for answer in example.answers:
        ids, counted = encode_chat(tokenizer, (*prompt, *answer), counting_from=len(prompt))
        if images:
            ids, counted = _shown(tokenizer, (*prompt, *answer), ids, counted, tokens)
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
    kept = [images[: int((document == Tokenizer.image_start).sum())] for document in documents]
    digests = {hashlib.sha256(image).digest() for image in chain.from_iterable(kept)}
    text = "".join(message.content for part in said for message in part)
    return Encoded(
        domain=PREFIX + example.domain if digests else example.domain,
        place=example.place,
        position=example.position,
        documents=documents,
        answers=answers,
        characters=len(text),
        text_bytes=len(text.encode()),
        cut=cut,
        images=[list(of_document) for of_document in kept],
        shown=frozenset(int.from_bytes(digest[:8]) for digest in digests),
    )


def _shown(
    tokenizer: TextTokenizer,
    messages: Messages,
    ids: Tokens,
    counted: NDArray[np.bool_],
    tokens: int,
) -> tuple[Tokens, NDArray[np.bool_]]:
    """A chat with the ids of its images, none of which counts."""
    images = [len(message.images) for message in messages]
    whole = np.array(in_turns(ids.tolist(), images, tokens, tokenizer.encode(USER)), np.int32)
    counts = np.zeros(len(whole), bool)
    counts[~is_image(whole)] = counted
    return whole, counts


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
