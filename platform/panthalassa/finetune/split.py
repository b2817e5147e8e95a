"""What is held out together: examples come in, the position of each goes out, by which they are split.

Examples that share an image are one group, with all that are tied to them by others, so that no image
is on both sides of the split. Groups without images are those of one prompt (`Example.position`).
"""

import hashlib
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from panthalassa.finetune.encode import Encoded


def positions(examples: Sequence[Encoded]) -> list[int]:
    """The position of the group of each example, a fraction of 2**64.

    That of a group with images is a hash of the least of them, not the least hash: a group is then as
    likely to be held out as any other, however many images it ties together.
    """
    return [
        example.position if not example.shown else _uniform(int(least))
        for example, least in zip(examples, _least(examples), strict=True)
    ]


def _least(examples: Sequence[Encoded]) -> NDArray[np.uint64]:
    """The least image of the group of each example [examples]."""
    counts = [len(example.shown) for example in examples]
    shown = np.fromiter(chain.from_iterable(example.shown for example in examples), np.uint64)
    images, node = np.unique(shown, return_inverse=True)
    size = len(examples) + len(images)
    edges = np.repeat(np.arange(len(examples)), counts), len(examples) + node
    graph = coo_array((np.ones(len(shown), bool), edges), shape=(size, size))
    groups = connected_components(graph, directed=False)[1]
    least = np.full(size, np.iinfo(np.uint64).max)
    np.minimum.at(least, groups[len(examples) :], images)
    found: NDArray[np.uint64] = least[groups[: len(examples)]]
    return found


def _uniform(image: int) -> int:
    return int.from_bytes(hashlib.sha256(image.to_bytes(8)).digest()[:8])
