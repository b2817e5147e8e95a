"""Images beside the file that names them: a path that others wrote comes in, one inside of its folder
goes out, and the SHA-256 of what lay there when the sources were listed.

A corpus takes only images of its listing, for these alone are part of what it was made from: a change
of any other would not be seen.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from panthalassa.corpus.documents import SourceFile, short
from panthalassa.corpus.images import BadImage
from panthalassa.storage import Storage, open_storage

KEY_BYTES = 16


def inside(storage: Storage, folder: str, image: str) -> str:
    """The path in `storage` of an image that a file in `folder` names, relative to that folder.

    Raises BadImage for one that is no path, or not in the folder, also by a link.
    """
    path = PurePosixPath(image)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "://" in image
        or "\0" in image
        or image != image.encode(errors="replace").decode()  # JSON can spell half of a pair
    ):
        raise BadImage(
            "image-path", f"{short(image)} is not in the folder of the file that names it"
        )
    found = str(PurePosixPath(folder) / path)
    if storage.is_local:
        real = os.path.join(os.path.realpath(storage.path(folder)), "")
        if not os.path.realpath(storage.path(found)).startswith(real):
            raise BadImage(
                "image-path",
                f"{short(image)} is a link out of the folder of the file that names it",
            )
    return found


@dataclass(frozen=True)
class ListedImages:
    """Images by the places they are at, whatever links lead there: `keys` [n] of those, in order, and
    the SHA-256 [n, 32] of their files."""

    keys: NDArray[np.void]
    digests: NDArray[np.uint8]

    @classmethod
    def of(cls, files: Sequence[SourceFile], hashes: Sequence[str]) -> "ListedImages":
        """Of a listing, with the SHA-256 of each file in hexadecimal."""
        keys = [_key(open_storage(file.root), file.path) for file in files]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        digests = b"".join(bytes.fromhex(hashes[number]) for number in order)
        return cls(
            np.frombuffer(b"".join(keys[number] for number in order), dtype=f"V{KEY_BYTES}"),
            np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        )

    def sha256(self, storage: Storage, path: str) -> str | None:
        """In hexadecimal; None for an image that is not listed."""
        key = _key(storage, path)
        low, high = 0, len(self.keys)
        while low < high:
            middle = (low + high) // 2
            if self.keys[middle].tobytes() < key:
                low = middle + 1
            else:
                high = middle
        if low == len(self.keys) or self.keys[low].tobytes() != key:
            return None
        return str(self.digests[low].tobytes().hex())


def _key(storage: Storage, path: str) -> bytes:
    place = os.path.realpath(storage.path(path)) if storage.is_local else f"{storage.uri}/{path}"
    return hashlib.sha256(place.encode()).digest()[:KEY_BYTES]
