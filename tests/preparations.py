"""A preparation without its lines, and what is in its destination."""

from panthalassa.config import Corpus
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.storage import Storage, open_storage


def run(corpus: Corpus) -> tuple[Manifest, Storage]:
    return prepare(corpus, lambda line: None), open_storage(corpus.directory)


def files_of(storage: Storage) -> dict[str, bytes]:
    return {path: storage.read(path) for path, _ in storage.files() if path != "preparation.json"}
