"""Compressed files give their content, and say where they are torn."""

import gzip
import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3 import BUCKET, s3_server, use_s3

from panthalassa.corpus.documents import Document
from panthalassa.corpus.formats import stream
from panthalassa.corpus.formats.stream import Damaged, gzip_members, lines
from panthalassa.corpus.sources import find_files, read_documents
from panthalassa.errors import CorpusError

LINES = b"".join(b'{"text": "line %d of the deep sea"}\n' % index for index in range(50_000))


@pytest.mark.parametrize("frames", [1, 3])
def test_every_way_to_compress_gives_the_same_lines(
    read, compress, suffix: str, frames: int
) -> None:
    size = len(LINES) // frames + 1
    parts = [LINES[start : start + size] for start in range(0, len(LINES), size)]
    documents, problems = read(
        f"a.jsonl{suffix}", b"".join(compress(suffix, part) for part in parts)
    )
    assert problems == []
    assert [document.text for document in documents] == [
        f"line {index} of the deep sea" for index in range(50_000)
    ]


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_archive_gives_what_was_before_and_one_problem(
    read, compress, suffix: str, kept: float
) -> None:
    draw = random.Random(1)
    data = b"".join(b'{"text": "%x"}\n' % draw.getrandbits(800) for _ in range(20_000))
    whole = compress(suffix, data)
    documents, problems = read(f"a.jsonl{suffix}", whole[: int(kept * len(whole)) - 7])
    assert len(problems) == 1
    assert str(problems[0]).startswith(problems[0].place)
    assert ("not JSON" if suffix == "" else "damaged") in problems[0].reason
    assert 0.1 * kept * 20_000 < len(documents) < 20_000


def test_an_empty_file_is_no_problem(read, suffix: str) -> None:
    for kind in ("txt", "jsonl", "xml", "warc"):
        assert read(f"a.{kind}{suffix}", b"") == ([], [])


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_what_is_not_compressed_at_all_is_named(read, suffix: str) -> None:
    documents, [problem] = read(f"a.txt{suffix}", b"plain text under a wrong name")
    assert documents == []
    assert "damaged" in problem.reason


def test_a_document_of_50_mb_on_one_line_is_read_whole(read) -> None:
    text = "tide " * 10_000_000
    [document], [] = read("a.jsonl.gz", gzip.compress(b'{"text": "%s"}' % text.encode(), 1))
    assert document.text == text.strip()


def test_a_line_that_is_too_long_is_cut_and_the_next_one_whole() -> None:
    source = io.BufferedReader(io.BytesIO(b"ab\n" + b"x" * 1000 + b"\ncd\n" + b"y" * 10))
    assert list(lines(source, 10)) == [
        (b"ab\n", True),
        (b"x" * 10, False),
        (b"cd\n", True),
        (b"y" * 10, False),
    ]


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=8),
    st.integers(min_value=1, max_value=400),
)
def test_gzip_members_are_given_whole_however_they_are_cut(parts: list[bytes], piece: int) -> None:
    data = b"".join(map(gzip.compress, parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE_BYTES", piece)
        assert list(gzip_members(io.BufferedReader(io.BytesIO(data)))) == parts


@given(st.data(), st.integers(min_value=1, max_value=400))
def test_a_rotten_gzip_member_costs_no_other(data: st.DataObject, piece: int) -> None:
    draw = random.Random(data.draw(st.integers()))
    parts = [draw.randbytes(200) for _ in range(5)]
    members = [bytearray(gzip.compress(part)) for part in parts]
    bad = data.draw(st.integers(min_value=0, max_value=4))
    at = data.draw(st.integers(min_value=20, max_value=len(members[bad]) - 5))
    members[bad][at] ^= 0xFF
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE_BYTES", piece)
        found = list(gzip_members(io.BufferedReader(io.BytesIO(b"".join(members)))))
    assert [part for part in found if isinstance(part, bytes)] == parts[:bad] + parts[bad + 1 :]
    assert any(isinstance(part, Damaged) for part in found)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "s3" / BUCKET).mkdir(parents=True)
    with s3_server(tmp_path / "s3") as server:
        use_s3(monkeypatch, server.url)
        yield tmp_path / "s3" / BUCKET


def test_object_storage_gives_the_same_documents(
    bucket: Path, compress: Callable[[str, bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REQUEST_BYTES", 100_000)
    for suffix in ("", ".gz", ".bz2", ".zst"):
        (bucket / f"a.jsonl{suffix}").write_bytes(compress(suffix, LINES))
    for file in find_files([f"s3://{BUCKET}"]):
        found = list(read_documents(file))
        assert len(found) == 50_000
        assert isinstance(found[-1], Document)
        assert found[-1].provenance.place == f"s3://{BUCKET}/{file.path}, line 50000"


def test_an_object_that_storage_can_not_give_ends_the_reading(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    [file] = find_files([f"s3://{BUCKET}"])
    failing = OSError("AWS Error ACCESS_DENIED during GetObject operation: no")

    def refuse(*_: object) -> None:
        raise failing

    monkeypatch.setattr(stream, "retrying", refuse)
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz can not be read: AWS Error"):
        list(read_documents(file))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    grown = {}
    for size in (4, 64):
        folder = tmp_path / str(size)
        folder.mkdir()
        with gzip.open(folder / "a.jsonl.gz", "wb", 1) as file:
            for _ in range(size):
                file.write((b'{"text": "' + b"sea " * 2_500 + b'"}\n') * 100)
        code = (
            "import resource, sys\n"
            "from panthalassa.corpus.sources import *\n"
            "[file] = find_files(sys.argv[1:])\n"
            "print(sum(1 for _ in read_documents(file)))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
        )
        count, grown[size] = map(int, run.stdout.split())
        assert count == 100 * size
    assert grown[64] < grown[4] + 20 * 1024  # kB; the larger file holds 60 MB more
