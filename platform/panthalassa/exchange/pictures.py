"""Image files that a model is shown: of any size, local or in a bucket; pixels come out."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from panthalassa.config_model import Model, Vision
from panthalassa.corpus.image_paths import inside
from panthalassa.corpus.images import LIMITS, BadImage, pixels, prepared
from panthalassa.errors import ConfigError, CorruptError
from panthalassa.model.vision import CHANNELS
from panthalassa.storage import Storage, open_storage


def vision_of(model: Model, name: str = "the model") -> Vision:
    """What reads images. Raises ConfigError for a model of text alone."""
    if model.vision is None:
        raise ConfigError(
            f"{name} can not read images: it was trained on text alone. Ask one that was trained with "
            "model.vision."
        )
    return model.vision


def path_of(data: Storage, folder: str, image: str) -> str:
    """The path in `data` of an image that a file in `folder` names, relative to that folder.

    Raises ConfigError for one that is not in the folder, also by a link.
    """
    try:
        return inside(data, folder, image)
    except BadImage as error:
        raise ConfigError(f"the image {error}") from error


def read_pictures(places: Sequence[str], size: int, digests: Sequence[str] = ()) -> Tensor:
    """Images as a corpus has them: uint8 [images, size, size, 3].

    They are encoded and decoded as those of a corpus are, so that a model sees what it would have been
    trained on, with what the encoding loses.

    digests: the SHA-256 of each file, where they are known. Raises ConfigError for what is missing or no
    image, CorruptError for other bytes.
    """
    found = torch.empty(len(places), size, size, CHANNELS, dtype=torch.uint8)
    for number, place in enumerate(places):
        data = _read(place, digests[number] if digests else None)
        try:
            found[number] = torch.from_numpy(pixels(prepared(data, size), size))
        except BadImage as error:
            raise ConfigError(
                f"the image {place} can not be shown to the model: {error}"
            ) from error
    return found


def _read(place: str, sha256: str | None) -> bytes:
    folder, slash, name = place.rpartition("/")
    storage = open_storage(folder or slash or ".")
    try:
        if (length := storage.size(name)) > LIMITS.max_bytes:
            raise ConfigError(
                f"the image {place} has {length:,} bytes, and may have {LIMITS.max_bytes:,}"
            )
        data = storage.read(name, sha256)
    except FileNotFoundError:
        raise ConfigError(f"the image {place} is not there") from None
    except OSError as error:
        raise ConfigError(f"the image {place} can not be read: {error}") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(f"the image {place} has changed since it was first read: ask again")
    return data
