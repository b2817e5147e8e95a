"""Where images stand in a text: the ids of a text go in, and come out with those of its images.

An image is `image_start`, `image` for each of its positions, and `image_end`. Images of a text stand
behind its `bos`, those of a message of a chat in front of what it says. Text alone can not spell these
ids, so they are put in when it is encoded.
"""

from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.tokenizer import Tokenizer, ids_of_image

USER = "user\n"
"""Behind the beginning of a turn: who shows images."""


def behind_bos(ids: Sequence[int], images: int, tokens: int) -> list[int]:
    """The ids of a text with `images` in front of it."""
    return [*ids[:1], *ids_of_image(tokens) * images, *ids[1:]]


def in_turns(
    ids: Sequence[int], images: Sequence[int], tokens: int, header: Sequence[int]
) -> list[int]:
    """The ids of a chat with so many images in front of what each message says.

    header: the ids of USER, for only a user shows images.
    """
    found: list[int] = []
    left, turn = 0, count()
    for place, id in enumerate(ids):
        if id == Tokenizer.turn_start and (number := next(turn)) < len(images):
            at = place + 1 + len(header)
            found += [*ids[left:at], *ids_of_image(tokens) * images[number]]
            left = at
    return [*found, *ids[left:]]


def is_image(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which ids [tokens] belong to an image."""
    return np.isin(ids, ids_of_image(1))
