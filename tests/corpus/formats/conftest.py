"""Files of one format, written and read back."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from panthalassa.corpus.documents import Document, Problem
from panthalassa.corpus.sources import find_files, read_documents

Found = tuple[list[Document], list[Problem]]
Read = Callable[[str, bytes], Found]


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data).to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


@pytest.fixture(params=COMPRESS)
def suffix(request: pytest.FixtureRequest) -> str:
    """Each way to compress a file, and none."""
    return str(request.param)


@pytest.fixture(scope="session")
def compress() -> Callable[[str, bytes], bytes]:
    return lambda suffix, data: COMPRESS[suffix](data)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The documents and the problems of a file of that name and content."""

    def read_file(name: str, data: bytes) -> Found:
        (tmp_path / name).write_bytes(data)
        [file] = [file for file in find_files([str(tmp_path)]) if file.path == name]
        found = list(read_documents(file))
        return (
            [each for each in found if isinstance(each, Document)],
            [each for each in found if isinstance(each, Problem)],
        )

    return read_file
