"""Images of samples: files come in, pixels go out, and from process to process without a copy in Python.

The tokens of a sample say how many images it has. Pixels of several samples lie one behind the other,
without a mark where one sample ends and the next begins, so a sample has all of its images or none.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from panthalassa.corpus.images import BadImage, Pixels, pixels
from panthalassa.corpus.manifest import Images
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.stream.order import Integers
from panthalassa.stream.row_group import Tokens

CHANNELS = 3


def room(kind: Images, count: int = 0) -> Pixels:
    """Room for so many images: uint8 [count, size, size, 3]."""
    return np.empty((count, kind.size, kind.size, CHANNELS), np.uint8)


def bytes_of(kind: Images) -> int:
    """Bytes of an image as pixels."""
    return kind.size**2 * CHANNELS


def positions_of(tokens: Tokens) -> Integers:
    """How many positions of each sample [n] are those of images."""
    found: Integers = (tokens == Tokenizer.image).sum(axis=1)
    return found


def decode(files: Sequence[bytes], positions: int, kind: Images, into: Pixels) -> int:
    """Decode the images of a sample, which take `positions` of it, into the first of `into`; how many.

    Raises BadImage for one that is not what `kind` says, or when there are more or fewer.
    """
    if len(files) * kind.tokens != positions:
        raise BadImage(
            "image-number",
            f"{len(files)} images and {positions} tokens of images, of which each takes {kind.tokens}",
        )
    for number, file in enumerate(files):
        try:
            pixels(file, kind.size, into[number])
        except BadImage as error:
            raise BadImage(error.rule, f"image {number + 1} of {len(files)}: {error}") from error
    return len(files)


def to_arrow(images: Pixels, counts: Integers, kind: Images) -> pa.Array:
    """Images of samples that have `counts` [n] of them, as a value for each sample: its pixels."""
    offsets = np.append(0, np.cumsum(counts * bytes_of(kind))).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(images)]
    return pa.Array.from_buffers(pa.large_binary(), len(counts), buffers)


def from_arrow(column: pa.ChunkedArray, kind: Images) -> Pixels:
    """Inverse of `to_arrow`; of one chunk without a copy."""
    pieces = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        pieces.append(np.frombuffer(data, np.uint8)[ends[0] : ends[-1]])
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined.reshape(-1, kind.size, kind.size, CHANNELS)
