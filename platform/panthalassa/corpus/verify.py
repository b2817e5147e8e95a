"""Verification: a corpus comes in, and what of it is not as its manifest says goes out.

Everything is read again: each file is hashed as it streams by, several at a time, so that the memory
does not grow with the corpus; and when its bytes are right, its rows and tokens are counted, which
finds what is wrong in the manifest itself. One listing of the folder tells what is missing, and what
is there and not listed. Nothing is changed.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from panthalassa.corpus.funnel import REPORT
from panthalassa.corpus.images import BadImage, pixels
from panthalassa.corpus.manifest import (
    ANSWERS,
    CLAIM,
    IMAGES,
    MANIFEST,
    PAGE,
    TOKENIZER,
    Images,
    Index,
    Manifest,
    Shard,
    read_manifest,
)
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

FILES_AT_ONCE = 8
ROWS_AT_ONCE = 1 << 16
IMAGE_ROWS_AT_ONCE = 32
AGAIN = "Restore it from a copy, or prepare the corpus anew into an empty folder."
MANIFEST_AGAIN = f"Restore {MANIFEST} from a copy, or prepare the corpus anew into an empty folder."


@dataclass(frozen=True)
class Verification:
    """What was found: `problems` are one line each, and name file and remedy."""

    uri: str
    fingerprint: str
    problems: list[str]
    files: int
    bytes: int
    seconds: float


class Listed(NamedTuple):
    """A file of the manifest. `compare` tells of its content, when its bytes are right, what was
    found and what the manifest says, by name."""

    path: str
    sha256: str
    size: int | None
    compare: Callable[[Path], dict[str, tuple[object, object]]]


class Group(NamedTuple):
    """What an index counts of `{split}/{domain}`."""

    name: str
    documents: int
    bytes: int


def verify(
    storage: Storage,
    advance: Callable[[int, int], None] = lambda done, all: None,
    fingerprint: str | None = None,
) -> Verification:
    """Compare a corpus with its manifest, byte by byte.

    `advance` is called with the bytes done, and all of them. `fingerprint` is the one that the corpus
    must have, when that is known. Raises CorpusError when the manifest or the folder can not be read.
    """
    began = time.monotonic()
    manifest = read_manifest(storage)
    try:
        sizes = dict(storage.files())
        problems = [*_of_manifest(storage, manifest, fingerprint)]
    except OSError as error:
        raise CorpusError(f"{storage.uri} can not be read: {error}") from error
    problems += _of_tokenizer(storage, manifest)
    counted: list[list[Group]] = []
    listed = list(_listed(manifest, counted))
    owners = {file.sha256: file.path for file in listed}
    check = partial(_of_file, storage, sizes, owners)
    done = sum(sizes.get(name, 0) for name in (TOKENIZER, *manifest.tokenizer_files))
    all = done + sum(sizes.get(file.path, 0) for file in listed)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for file, found in zip(listed, pool.map(check, listed), strict=True):
            problems += [f"{file.path} {found}"] if found else []
            done += sizes.get(file.path, 0)
            advance(done, all)
    problems += _of_totals(manifest, counted)
    known = {MANIFEST, TOKENIZER, CLAIM, PAGE, *manifest.tokenizer_files}
    known |= {file.path for file in listed}
    problems += [
        f"{path} is not listed: no run reads it. Remove it, or move it elsewhere."
        for path in sorted(sizes.keys() - known)
    ]
    seconds = time.monotonic() - began
    return Verification(storage.uri, manifest.fingerprint, problems, 1 + len(listed), done, seconds)


def _of_totals(manifest: Manifest, counted: list[list[Group]]) -> Iterator[str]:
    """What the manifest counts otherwise than the index does, when all of that could be read."""
    if len(counted) < len(manifest.index) or not counted:
        return
    documents, text_bytes = Counter[str](), Counter[str]()
    for group in (group for groups in counted for group in groups):
        documents[group.name] += group.documents
        text_bytes[group.name] += group.bytes
    pairs = (documents, manifest.documents), (text_bytes, manifest.text_bytes)
    for what, (found, listed) in zip(("documents", "text_bytes"), pairs, strict=True):
        for name in sorted(found.keys() | listed.keys()):
            if found[name] != listed.get(name, 0):
                yield (
                    f"{MANIFEST} says that {what} of {name} are {listed.get(name, 0)}, the index "
                    f"{found[name]}. {MANIFEST_AGAIN}"
                )


def _listed(manifest: Manifest, counted: list[list[Group]]) -> Iterator[Listed]:
    """All files of a corpus but the manifest and the tokenizer. What an index counts is added to
    `counted` when it is compared."""
    for shard in manifest.shards:
        yield Listed(shard.path, shard.sha256, shard.size, partial(_of_shard, manifest, shard))
    for index in manifest.index:
        yield Listed(index.path, index.sha256, index.size, partial(_of_index, index, counted))
    if manifest.report_sha256:
        yield Listed(REPORT, manifest.report_sha256, None, lambda file: {})


def explain(found: Verification) -> Iterator[tuple[str, str]]:
    """The summary as rows of a name and a text."""
    speed = found.bytes / 1e6 / max(found.seconds, 1e-3)
    yield "corpus", found.uri
    yield "fingerprint", found.fingerprint
    yield "read", f"{found.files:,} files, {found.bytes:,} bytes"
    yield "time", f"{found.seconds:.1f} s, {speed:,.0f} MB/s"
    count = len(found.problems)
    told = "each file is what the manifest says"
    yield "verdict", told if not count else f"{count} problem{'s' if count > 1 else ''}, see above"


def _of_manifest(storage: Storage, manifest: Manifest, fingerprint: str | None) -> Iterator[str]:
    if storage.read(MANIFEST) != manifest.encode():
        yield f"{MANIFEST} is not in the form in which it was written. {MANIFEST_AGAIN}"
    if fingerprint and fingerprint != manifest.fingerprint:
        yield (
            f"{MANIFEST} has the fingerprint {manifest.fingerprint}, expected {fingerprint}: it is "
            f"that of another corpus, or was changed. {MANIFEST_AGAIN}"
        )
    paths: set[str] = set()
    for file in _listed(manifest, []):
        if file.path in paths:
            yield f"{file.path} is listed more than once. {MANIFEST_AGAIN}"
        paths.add(file.path)


def _of_tokenizer(storage: Storage, manifest: Manifest) -> Iterator[str]:
    try:
        found = read_tokenizer(storage, manifest)
    except CorpusError as error:
        yield str(error)
        return
    has = (found.vocabulary_size, found.bos, found.eos)
    listed = (manifest.vocabulary_size, manifest.bos, manifest.eos)
    if has != listed:
        yield (
            f"{TOKENIZER} has (vocabulary, bos, eos) = {has}, the manifest says {listed}. "
            f"{MANIFEST_AGAIN}"
        )


def _of_file(
    storage: Storage,
    sizes: dict[str, int],
    owners: dict[str, str],
    file: Listed,
) -> str:
    """What is wrong with a file, without its name; empty when nothing is."""
    size = sizes.get(file.path)
    if size is None:
        return f"is missing. {AGAIN}"
    try:
        with _hashed(storage, file) as (copy, sha256):
            if sha256 == file.sha256:
                wrong = _wrongly_listed(copy, file, size)
                return f"{wrong}. {MANIFEST_AGAIN}" if wrong else ""
    except FileNotFoundError:
        return f"has vanished since the folder was listed. {AGAIN}"
    except OSError as error:
        return f"can not be read: {error}. Mend that and verify again."
    if other := owners.get(sha256):
        return f"holds the bytes of {other}. Put both back in their places, or restore them."
    if file.size is not None and size != file.size:
        what = "is cut off" if size < file.size else "is too long"
        return f"{what}: it has {size} bytes, the manifest says {file.size}. {AGAIN}"
    return f"is rotten: its SHA-256 is {sha256}, the manifest says {file.sha256}. {AGAIN}"


@contextmanager
def _hashed(storage: Storage, file: Listed) -> Iterator[tuple[Path, str]]:
    """The file on this machine, and its SHA-256; from S3 it is here as long as it is looked at."""
    if storage.is_local:
        yield Path(storage.path(file.path)), storage.sha256(file.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        yield copy, storage.download(file.path, copy, file.sha256)


def _wrongly_listed(copy: Path, file: Listed, size: int) -> str:
    """In what a file with the right bytes differs from its record; empty when in nothing."""
    try:
        pairs = file.compare(copy)
    except (pa.ArrowException, KeyError, AttributeError) as error:
        return f"is not what the manifest takes it for: {error}"
    if file.size is not None:
        pairs["size"] = (size, file.size)
    return ", ".join(
        f"has as {what} {found}, the manifest says {listed}"
        for what, (found, listed) in pairs.items()
        if found != listed
    )


def _of_shard(manifest: Manifest, shard: Shard, copy: Path) -> dict[str, tuple[object, object]]:
    with pq.ParquetFile(copy) as parquet:
        metadata = parquet.metadata
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        width = parquet.schema_arrow.field("tokens").type.list_size
        batches = parquet.iter_batches(ROWS_AT_ONCE, columns=["lengths"])
        tokens = sum(pc.sum(batch["lengths"].flatten()).as_py() for batch in batches)
        counted = None
        images, wrong = _of_images(manifest, parquet)
        if ANSWERS in parquet.schema_arrow.names:
            batches = parquet.iter_batches(ROWS_AT_ONCE, columns=[ANSWERS])
            counted = sum(_counted(batch[ANSWERS].flatten()) for batch in batches)
    return {
        "rows": (metadata.num_rows, shard.rows),
        "rows in its row groups": (groups, shard.row_groups),
        "tokens": (tokens, shard.tokens),
        "tokens that count": (counted, shard.counted),
        "images": (images, shard.images),
        "images that are not what its tokens tell": (wrong, 0),
        "tokens in a row": (width, manifest.sequence_length),
        "folder": (shard.path.rpartition("/")[0], f"{shard.split}/{shard.domain}"),
    }


def _of_images(manifest: Manifest, parquet: pq.ParquetFile) -> tuple[int | None, int]:
    """How many images a shard has, if it has the column; and how many of its rows have another number of
    them than of places for them, or one that can not be decoded."""
    if IMAGES not in parquet.schema_arrow.names:
        return None, 0
    count = wrong = 0
    for batch in parquet.iter_batches(IMAGE_ROWS_AT_ONCE, columns=["tokens", IMAGES]):
        for tokens, images in zip(batch["tokens"], batch[IMAGES].to_pylist(), strict=True):
            count += len(images)
            places = int((tokens.values.to_numpy() == Tokenizer.image).sum())
            wrong += not _are_right(manifest.images, images, places)
    return count, wrong


def _are_right(expected: Images | None, images: list[bytes], places: int) -> bool:
    if not expected or places != len(images) * expected.tokens:
        return False
    try:
        for image in images:
            pixels(image, expected.size)
    except BadImage:
        return False
    return True


def _counted(bounds: pa.Array) -> int:
    """Tokens in the runs from each first bound to the one behind it."""
    positions = bounds.to_numpy()
    return int((positions[1::2] - positions[::2]).sum())


def _of_index(
    index: Index, counted: list[list[Group]], copy: Path
) -> dict[str, tuple[object, object]]:
    table = pq.read_table(copy, columns=["split", "domain", "bytes"])
    sums = table.group_by(["split", "domain"]).aggregate([("bytes", "count"), ("bytes", "sum")])
    counted.append(
        [
            Group(f"{split}/{domain}", *sizes)
            for split, domain, *sizes in zip(*map(pa.ChunkedArray.to_pylist, sums), strict=True)
        ]
    )
    return {"documents": (len(table), index.documents)}
