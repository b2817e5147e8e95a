"""The images that files of examples name: hashed before a preparation, and read in it as they were."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from panthalassa.corpus.documents import SourceFile
from panthalassa.corpus.formats.pairs import stored_image
from panthalassa.corpus.images import LIMITS, BadImage
from panthalassa.corpus.manifest import Objective
from panthalassa.errors import CorpusError
from panthalassa.finetune.examples import Example, read_examples
from panthalassa.storage import open_storage

Hashes = dict[tuple[str, str, str, str], str]
"""What `image_sha256` gives, by the root and the name of the source, the folder in it, and the path from
there."""


def hash_images(files: Iterable[SourceFile], objective: Objective) -> Hashes:
    """The hashes of all images that the examples of the files name. Raises CorpusError for a file that
    can not be had."""
    found: Hashes = {}
    for file in files:
        for example in read_examples(file, objective):
            for path in example.images if isinstance(example, Example) else ():
                if (name := key(file, path)) not in found:
                    found[name] = image_sha256(_stored(file, path))
    return found


def read_image(file: SourceFile, path: str, hashes: Hashes) -> bytes:
    """An image that an example of the file names. Raises BadImage, and CorpusError when it is not what
    it was."""
    found = _stored(file, path)
    if image_sha256(found) != hashes.get(key(file, path)):
        raise CorpusError(
            f"the image {path!r} of {file.place} has changed since the preparation began. Put back what "
            "it was, or prepare the sources as they are now into an empty folder."
        )
    if isinstance(found, BadImage):
        raise found
    return found


def key(file: SourceFile, path: str) -> tuple[str, str, str, str]:
    """Of an image in Hashes."""
    return file.root, file.source, str(PurePosixPath(file.path).parent), path


def image_sha256(image: bytes | BadImage) -> str:
    """That of the file; of one that can not be had, what is wrong."""
    return str(image) if isinstance(image, BadImage) else hashlib.sha256(image).hexdigest()


def _stored(file: SourceFile, path: str) -> bytes | BadImage:
    folder = str(PurePosixPath(file.path).parent)
    return stored_image(open_storage(file.root), folder, path, LIMITS.max_bytes)
