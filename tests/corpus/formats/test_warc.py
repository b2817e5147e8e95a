"""Web crawls give the texts of their pages; a broken record costs itself alone."""

import gzip
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.formats.warc import REASON, Parts

PAGE = (
    "<html><head><title>T</title></head><body><nav><a href='/'>Home</a></nav><main><article>"
    "<p>{} waves came in from the open sea that day, and nobody counted them.</p>"
    "</article></main></body></html>"
)


def record(
    index: int,
    block: bytes | None = None,
    kind: str = "response",
    length: int | None = None,
    mime: str = "application/http; msgtype=response",
) -> bytes:
    if block is None:
        block = http(PAGE.format(index).encode())
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{index}>\r\n"
        f"WARC-Target-URI: http://sea.example/{index}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"Content-Type: {mime}\r\nContent-Length: {len(block) if length is None else length}\r\n"
    )
    return header.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, status: str = "200 OK", mime: str = "text/html; charset=utf-8") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {mime}\r\n\r\n".encode() + body


def urls(documents: list) -> list[int]:
    return [int(document.provenance.url.rpartition("/")[2]) for document in documents]


RECORDS = [record(index) for index in range(5)]
PACKINGS: dict[str, Callable[[list[bytes]], bytes]] = {
    "a.warc": b"".join,
    "a.warc.gz": lambda records: b"".join(map(gzip.compress, records)),
    "b.warc.gz": lambda records: gzip.compress(b"".join(records)),
}


def test_pages_give_their_main_text_url_and_record(read, compress, suffix: str) -> None:
    documents, problems = read(f"a.warc{suffix}", compress(suffix, b"".join(RECORDS)))
    assert problems == []
    assert urls(documents) == [0, 1, 2, 3, 4]
    assert documents[3].text.startswith("3 waves came in")
    assert "Home" not in documents[3].text
    assert documents[3].provenance.place.endswith(f"a.warc{suffix}, record 4")


def test_wet_gives_its_texts(read) -> None:
    data = record(1, b"software: x", "warcinfo") + record(
        2, "η θάλασσα\n".encode(), "conversion", mime="text/plain"
    )
    [document], [] = read("a.warc.wet.gz", gzip.compress(data))
    assert document.text == "η θάλασσα"
    assert document.provenance.url == "http://sea.example/2"


def test_a_wet_text_that_is_no_utf8_is_a_problem(read) -> None:
    data = record(1, b"caf\xe9", "conversion") + record(2, b"tide", "conversion")
    documents, [problem] = read("a.wet", data)
    assert urls(documents) == [2]
    assert "record 1" in problem.place
    assert "no UTF-8" in problem.reason


def test_what_is_no_page_is_left_out_without_a_problem(read) -> None:
    others = [
        record(0, b"x", "request"),
        record(1, http(b"gone", "404 Not Found")),
        record(2, http(b"\x89PNG", mime="image/png")),
        record(3, b"a: b", "metadata"),
        record(4),
    ]
    documents, problems = read("a.warc", b"".join(others))
    assert (urls(documents), problems) == ([4], [])


@pytest.mark.parametrize(("name", "pack"), PACKINGS.items())
@pytest.mark.parametrize(
    "broken",
    [
        record(2, length=20),
        record(2, length=len(RECORDS[3]) + 100),
        record(2, length=10**9 % (16 << 20)),
        record(2).replace(b"Content-Length: ", b"Content-Length: x"),
        record(2).replace(b"WARC/1.0", b"WORC/9.0"),
        b"garbage\r\n\r\nand more of it\r\n",
        record(2, b"no answer of a server\r\n\r\n"),
        record(2)[:150],
    ],
    ids=["short", "long", "endless", "no-length", "no-version", "garbage", "no-http", "torn"],
)
def test_a_broken_record_costs_itself_alone(read, name: str, pack, broken: bytes) -> None:
    documents, problems = read(name, pack([*RECORDS[:2], broken, *RECORDS[3:]]))
    assert urls(documents) == [0, 1, 3, 4]
    assert len(problems) == 1
    assert problems[0].place.endswith("record 3")


@pytest.mark.parametrize("torn", [False, True])
def test_a_rotten_or_torn_gzip_member_costs_its_record_alone(read, torn: bool) -> None:
    members = [bytearray(gzip.compress(each)) for each in RECORDS]
    if torn:
        del members[2][100:]
    else:
        members[2][100] ^= 0xFF
    documents, problems = read("a.warc.gz", b"".join(members))
    assert urls(documents) == [0, 1, 3, 4]
    assert [problem.place.rpartition(", ")[2] for problem in problems] == ["record 3"]


def test_a_wrong_length_before_a_torn_end_costs_two_records(read) -> None:
    records = [*RECORDS, record(5)]
    records[1] = record(1, length=99_999)
    documents, problems = read("a.warc.gz", b"".join(map(gzip.compress, records))[:-20])
    assert urls(documents) == [0, 2, 3, 4]
    assert [problem.place.rpartition(", ")[2] for problem in problems] == ["record 2", "record 6"]


def test_a_problem_does_not_quote_the_page(read) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, [problem] = read("a.warc", record(0, chunked + b"<p>the sea </p>" * 100))
    assert len(problem.reason) < REASON + 30


@pytest.mark.parametrize(("name", "pack"), PACKINGS.items())
def test_the_last_record_is_not_given_when_it_is_torn(read, name: str, pack) -> None:
    pages = [PAGE.format(random.Random(index).randbytes(999).hex()) for index in range(5)]
    records = [record(index, http(page.encode())) for index, page in enumerate(pages)]
    documents, problems = read(name, pack(records)[:-60])
    assert urls(documents) == [0, 1, 2, 3]
    assert len(problems) == 1


def test_a_page_that_would_take_hours_costs_itself_alone(read) -> None:
    deep = record(1, http(b"<div>" * 100_000 + b"sea"))
    documents, [problem] = read("a.warc", record(0) + deep + record(2))
    assert urls(documents) == [0, 2]
    assert "record 2: can not be parsed: tags are nested more than" in str(problem)


def test_a_plain_text_under_an_unknown_label_is_read(read) -> None:
    plain = http("η θάλασσα".encode(), mime="text/plain; charset=none")
    [document], [] = read("a.warc", record(0, plain))
    assert document.text == "η θάλασσα"


def test_a_record_that_is_too_large_is_passed_over(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panthalassa.corpus.formats.warc.RECORD_BYTES", 2000)
    data = record(0) + record(1, http(b"x" * 5000)) + record(2)
    documents, problems = read("a.warc", data)
    assert (urls(documents), problems) == ([0, 2], [])


def test_the_licence_of_a_page_is_kept(read) -> None:
    link = b'<a rel="nofollow license" href="https://creativecommons.org/licenses/by/4.0/">CC</a>'
    page = PAGE.format(1).encode().replace(b"</main>", link + b"</main>")
    documents, [] = read("a.warc", record(0, http(page)) + record(1))
    licenses = [document.provenance.license for document in documents]
    assert licenses == ["https://creativecommons.org/licenses/by/4.0/", None]


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_what_is_read_and_given_back_is_read_again(pieces: list[bytes], size: int) -> None:
    parts = Parts(iter(pieces))
    parts.give_back(parts.read(size))
    data = b""
    while piece := parts.read(7):
        data += piece
    assert data == b"".join(pieces)
