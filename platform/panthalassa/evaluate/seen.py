"""How likely continuations are behind images: what they are behind is read once for all of them.

A choice among a hundred names of an image is one reading of the image and of the prompt, whose keys and
values are then repeated for as many names as fit at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from panthalassa.evaluate.task import Picture
from panthalassa.model.kv_cache import KVCache
from panthalassa.model.transformer import Transformer


@dataclass(frozen=True)
class Context:
    """What is shown and said: the images, and the ids in which they have their places."""

    images: tuple[Picture, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """Continuations, and what the head reads of them, [positions, hidden]."""

    continuations: Sequence[Sequence[int]]
    hidden: Tensor
    places: Sequence[int]
    """The position before each of their ids, one continuation after the other."""


def read(
    model: Transformer,
    context: Context,
    images: Tensor,
    continuations: Sequence[Sequence[int]],
    batch_tokens: int,
) -> Iterator[Read]:
    """The continuations in their order, none of them empty, some at a time.

    images: of the context, uint8 [images, size, size, 3]. batch_tokens: that are in memory at a time,
    those of the context for each continuation.
    """
    *before, last = context.ids
    cache = KVCache(model, 1, len(context.ids), images)
    cache.hidden([before])
    size = max(1, batch_tokens // (len(context.ids) + max(map(len, continuations))))
    for start in range(0, len(continuations), size):
        some = continuations[start : start + size]
        hidden = cache.repeated(len(some)).hidden([[last, *ids[:-1]] for ids in some])
        width = hidden.shape[1]
        places = [
            place
            for row, ids in enumerate(some, 1)
            for place in range(row * width - len(ids), row * width)
        ]
        yield Read(some, hidden.flatten(0, 1), places)
