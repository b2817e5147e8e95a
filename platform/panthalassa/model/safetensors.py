"""Files of tensors in the safetensors format: what stands in which file, and where.

A file is the length of its header (8 bytes, little-endian), the header (JSON: type, shape, and first and
last byte of each tensor), and the bytes of the tensors. All of it is known before the first byte of a
tensor is, so a file can be written from its beginning to its end, in pieces of any size.
Source: the format's description at https://github.com/huggingface/safetensors.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from panthalassa.errors import ConfigError

WHOLE = "model.safetensors"
"""The file of a model that needs one."""
INDEX = "model.safetensors.index.json"
"""Which file of several has a tensor."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
"""Bytes, as the format allows."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    """Of its bytes in the file; known of one that was read."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def divide(entries: Iterable[Entry], limit: int) -> dict[str, list[Entry]]:
    """The files of tensors, in order, by name: of `limit` bytes at most, or of one tensor."""
    shares: list[list[Entry]] = [[]]
    for entry in entries:
        if shares[-1] and sum(other.size for other in shares[-1]) + entry.size > limit:
            shares.append([])
        shares[-1].append(entry)
    if len(shares) == 1:
        return {WHOLE: shares[0]}
    of = len(shares)
    return {f"model-{n:05d}-of-{of:05d}.safetensors": share for n, share in enumerate(shares, 1)}


def header(entries: Sequence[Entry]) -> bytes:
    """The beginning of a file whose tensors follow in this order."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        content[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    encoded = json.dumps(content, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def index(files: dict[str, list[Entry]]) -> bytes:
    """The content of INDEX."""
    total = sum(entry.size for entries in files.values() for entry in entries)
    where = {entry.name: file for file, entries in files.items() for entry in entries}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def read_header(file: BinaryIO, size: int, place: str) -> list[Entry]:
    """The tensors of a file of `size` bytes. Raises ConfigError for one that is none, or cut off."""
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            raise ValueError(f"its header would have {length} bytes")
        content = json.loads(file.read(length))
        found = []
        for name, said in content.items():
            if name == "__metadata__":
                continue
            if said["dtype"] not in DTYPES:
                raise ValueError(f"{name} is of type {said['dtype']}, expected {', '.join(DTYPES)}")
            shape, (start, end) = tuple(map(int, said["shape"])), map(int, said["data_offsets"])
            entry = Entry(name, DTYPES[said["dtype"]], shape, 8 + length + start)
            if min((0, *shape)) < 0 or start < 0 or end - start != entry.size:
                raise ValueError(f"{name} does not fill its bytes")
            if entry.start + entry.size > size:
                raise ValueError(f"{name} ends behind its {size} bytes: it was cut off")
            found.append(entry)
        return found
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{place} is no file of safetensors: {error}") from error
