"""The destination of a preparation: what is there already, whose it is, and the commit of a corpus.

A finished corpus of the same input is found, an unfinished one is gone on with, and everything else in
the folder is refused: nothing of anybody else's is ever written over.
"""

import json

from panthalassa import config
from panthalassa.corpus.documents import SourceFile
from panthalassa.corpus.funnel import REPORT
from panthalassa.corpus.manifest import CLAIM, MANIFEST, TOKENIZER, Manifest, read_manifest
from panthalassa.corpus.parts import INDEX
from panthalassa.corpus.shards import unwritable
from panthalassa.corpus.staging import STAGING
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage


def refuse_overlap(files: list[SourceFile], storage: Storage) -> None:
    for root in sorted({file.root for file in files}):
        if f"{storage.uri}/".startswith(f"{root}/"):
            raise CorpusError(
                f"corpus.directory {storage.uri} lies inside the source {root}, which would then "
                "hold its own corpus. Choose a folder outside of it."
            )


def already_prepared(storage: Storage, preparation: str) -> Manifest | None:
    try:
        if not storage.exists(MANIFEST):
            return None
    except OSError as error:
        raise CorpusError(
            f"corpus.directory {storage.uri} can not be reached: {error}. Correct the key, or "
            "the endpoint, credentials and permissions."
        ) from error
    manifest = read_manifest(storage)
    if manifest.preparation != preparation:
        raise _occupied(storage, "the corpus of other sources or settings")
    return manifest


def claim(storage: Storage, corpus: config.Corpus, preparation: str) -> None:
    """Mark the destination before the work, which also shows early that it can be written."""
    others = (TOKENIZER, REPORT, INDEX, STAGING, "train", "held_out")
    if not storage.exists(CLAIM) and any(storage.exists(name) for name in others):
        raise _occupied(storage, "files that are not of this preparation")
    content = {"preparation": preparation, "corpus": corpus.model_dump(mode="json")}
    try:
        storage.create(CLAIM, (json.dumps(content, indent=1) + "\n").encode())
    except FileExistsError:
        try:
            claimed = json.loads(storage.read(CLAIM))["preparation"]
        except (OSError, ValueError, KeyError, TypeError):
            claimed = None
        if claimed != preparation:
            raise _occupied(
                storage, "an unfinished preparation of other sources or settings"
            ) from None
    except NotADirectoryError:
        raise CorpusError(
            f"corpus.directory {storage.uri} is no folder. Choose another, or remove what is there."
        ) from None
    except OSError as error:
        raise unwritable(storage, CLAIM, error) from error


def commit(storage: Storage, manifest: Manifest) -> None:
    """Write the manifest, last of all and never over another one."""
    try:
        storage.create(MANIFEST, manifest.encode())
    except FileExistsError:
        raise _occupied(storage, "a manifest that another command has written meanwhile") from None
    except OSError as error:
        raise unwritable(storage, MANIFEST, error) from error


def _occupied(storage: Storage, what: str) -> CorpusError:
    return CorpusError(
        f"{storage.uri} holds {what}, and nothing is ever overwritten. "
        "Choose another corpus.directory or remove the folder."
    )
