"""Sources are read; what of them can not be is a problem with its place, and nothing stops for it."""

import gzip
import json
import os
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.documents import Document, Problem
from panthalassa.corpus.normalise import normalise
from panthalassa.corpus.sources import (
    content_sha256,
    find_files,
    list_files,
    path_safe,
    read_documents,
)
from panthalassa.errors import CorpusError


def found(source: Path | str) -> list[Document | Problem]:
    return [each for file in find_files([str(source)]) for each in read_documents(file)]


def read(source: Path | str) -> list[tuple[str, str]]:
    documents = [each for each in found(source) if isinstance(each, Document)]
    assert documents == found(source)
    return [(document.domain, document.text) for document in documents]


def problem(source: Path | str) -> Problem:
    [one] = [each for each in found(source) if isinstance(each, Problem)]
    return one


def put(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_the_three_kinds_of_files_are_read_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "one.txt", "first\nlines")
    put(tmp_path / "a" / "two.jsonl", '{"text": "second"}\n\n{"text": "third"}')
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"text": ["fourth", None, ""]}), tmp_path / "c" / "three.parquet")
    put(tmp_path / "c" / "README.md", "not a source")
    put(tmp_path / ".git" / "four.txt", "not a source")
    assert read(tmp_path) == [
        ("a", "first\nlines"),
        ("a", "second"),
        ("a", "third"),
        ("c", "fourth"),
    ]


def test_endings_are_read_in_any_case_and_json_as_lines(tmp_path: Path) -> None:
    names = ["1.TXT", "2.JSONL", "3.json", "4.ndjson", "5.Json.GZ", "6.TXT.Gz"]
    for name in names:
        data = (name if "txt" in name.lower() else json.dumps({"text": name})).encode()
        put(tmp_path / name, gzip.compress(data) if name.lower().endswith("gz") else data)
    assert [text for _, text in read(tmp_path)] == names


def test_files_of_other_kinds_are_counted_by_their_ending(tmp_path: Path) -> None:
    put(tmp_path / "one" / "a.txt", "text")
    put(tmp_path / "two" / "b.txt", "text")
    for name in ("one/a.csv", "two/B.CSV", "two/c.csv.gz", "one/LICENSE", "two/v1.0.tar"):
        put(tmp_path / name, "x")
    for name in (".hidden.csv", ".git/x.csv", "w-multistream-index.txt.bz2"):
        put(tmp_path / "one" / name, "x")
    listing = list_files([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [file.path for file in listing.files] == ["a.txt", "b.txt"]
    assert listing.left_out == {".csv": 2, ".csv.gz": 1, "no ending": 1, ".tar": 1}


def test_a_file_is_read_once_however_many_links_lead_there(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(tmp_path / "outside" / "b.txt", "linked from elsewhere")
    put(tmp_path / "c.txt", "above the source")
    put(root / "blobs" / "4f1e", "kept under a name without an ending")
    put(root / "z" / "a.txt", "within")
    for link, target in {
        "z/again": "..",
        "z/above": "../..",
        "z/d.txt": "../blobs/4f1e",
        "also.txt": "z/a.txt",
        "more": "../outside",
        "other": "../outside",
    }.items():
        (root / link).symlink_to(target)
    assert sorted(text for _, text in read(root)) == [
        "kept under a name without an ending",
        "linked from elsewhere",
        "within",
    ]


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "text")
    put(tmp_path / os.fsdecode(b"gr\xf6\xdfe.txt"), "text")
    with pytest.raises(CorpusError, match=r"gr\\xf6\\xdfe\.txt' is not UTF-8\. Rename"):
        find_files([str(tmp_path)])


def test_a_language_column_names_the_domain_then_the_folder_then_the_source(
    tmp_path: Path,
) -> None:
    source = tmp_path / "books"
    lines = [{"text": "x", "language": "fi"}, {"text": "y", "language": None}, {"text": "z"}]
    put(source / "nordic" / "a.jsonl", "\n".join(map(json.dumps, lines)))
    put(source / "b.txt", "w")
    table = pa.table({"text": ["v", "u"], "language": ["sv", None]})
    pq.write_table(table, source / "c.parquet")
    domains = {text: domain for domain, text in read(source)}
    assert domains == {
        "x": "fi",
        "y": "nordic",
        "z": "nordic",
        "w": "books",
        "v": "sv",
        "u": "books",
    }


def test_python_carries_a_source_of_its_own() -> None:
    documents = read("python-reference")
    assert len(documents) == len(topics)
    assert {domain for domain, _ in documents} == {"python"}
    assert normalise(topics["while"]) in {text for _, text in documents}


def test_a_document_knows_its_file_and_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n')
    [file] = find_files([str(tmp_path)])
    places = [document.provenance.place for document in read_documents(file)]
    assert places == [f"{path}, line 1", f"{path}, line 3"]


BAD_LINES = {
    "no JSON": (b'{"text": "ok"}\n{"text": bad}', "line 2: not JSON"),
    "torn": (b'{"text": "ok"}\n{"text": "o', "line 2: not JSON"),
    "too deep": (b"[" * 200_000, "line 1: not JSON"),
    "no object": (b'{"text": "ok"}\n\n["text"]', "line 3: expected an object"),
    "no text": (b'{"body": "x"}', "line 1: expected an object with the key `text`"),
    "text is no string": (b'{"text": 5}', "line 1: `text` is 5, expected a string"),
    "text is null": (b'{"text": null}', "line 1: `text` is None, expected a string"),
    "language is no string": (b'{"text": "x", "language": 7}', "line 1: `language` is 7"),
    "no UTF-8": (b'{"text": "ok"}\n{"text": "\xe9"}', "line 2: no UTF-8"),
    "half a surrogate pair": (b'{"text": "\\ud800"}', "line 1: the text is not valid Unicode"),
}


@pytest.mark.parametrize(("data", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = put(tmp_path / "en" / "bad.jsonl", data)
    assert str(problem(tmp_path)).startswith(f"{path}, {message}")
    assert len(found(tmp_path)) == 1 + data.count(b'"ok"')


def test_a_text_file_that_is_no_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = put(tmp_path / "latin1.txt", "eins\nzwei\nfünf".encode("latin-1"))
    assert str(problem(tmp_path)).startswith(f"{path}, line 3: no UTF-8")


def test_a_parquet_file_without_texts_is_named_with_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x", "y"], "id": [1, 2]}), tmp_path / "a.parquet")
    assert "a.parquet: there is no column `text` among body, id" in str(problem(tmp_path))
    assert problem(tmp_path).records == 2


def test_a_parquet_text_that_is_no_string_is_named_with_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [3]}), tmp_path / "a.parquet")
    assert "a.parquet, row 1: `text` is 3, expected a string" in str(problem(tmp_path))


def test_a_parquet_text_that_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    good, bad = pa.array([b"ok", b"\xff"], pa.binary()).buffers()[1:]
    text = pa.StringArray.from_buffers(2, good, bad)
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert "a.parquet, row 2: no UTF-8" in str(problem(tmp_path))
    assert len(found(tmp_path)) == 2


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all" * 10])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, data: bytes) -> None:
    put(tmp_path / "a.parquet", data)
    assert "a.parquet: no readable Parquet file" in str(problem(tmp_path))


def test_a_file_that_is_gone_when_it_is_read_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.parquet", "d.warc.gz", "e.xml.bz2", "f.txt.zst"):
        path = put(tmp_path / name, "x")
        [file] = find_files([str(tmp_path)])
        path.unlink()
        for use in (content_sha256, lambda file: list(read_documents(file))):
            with pytest.raises(CorpusError, match=rf"{name} can not be read: .*[Nn]o such file"):
                use(file)


def test_no_sources_at_all_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"corpus\.sources is empty: list folders"):
        find_files([])


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"missing does not exist\. Correct the key corpus"):
        find_files([str(tmp_path / "missing")])


def test_a_source_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "text")
    with pytest.raises(CorpusError, match=r"a\.txt is no readable folder"):
        find_files([str(path)])


def test_a_source_without_texts_is_named(tmp_path: Path) -> None:
    put(tmp_path / "image.png", "x")
    with pytest.raises(CorpusError, match=r"holds no \.txt, \.jsonl, .* file\. Add"):
        find_files([str(tmp_path)])


@given(st.text())
def test_every_domain_becomes_a_name_that_is_safe_in_paths(domain: str) -> None:
    safe = path_safe(domain)
    assert set(safe) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert 0 < len(safe) <= 64
    assert safe[0].isalnum()
    assert path_safe(safe) == safe


def test_domains_stay_different_when_their_names_are_changed() -> None:
    names = ["zh-Hant", "中文", "日本", "", "..", "a/b", "a b", "a\\b", "x" * 80, "x" * 81]
    assert path_safe("zh-Hant") == "zh-Hant"
    assert len({path_safe(name) for name in names}) == len(names)
