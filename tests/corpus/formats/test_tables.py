"""Rows keep their place, URL and licence; a broken row group costs itself alone."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.documents import SourceFile
from panthalassa.corpus.formats.tables import read_json_lines


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def test_url_and_licence_are_kept_in_either_spelling(read) -> None:
    rows = [
        {"text": "a", "url": "http://e.org/a", "license": "CC0-1.0"},
        {"text": "b", "licence": ["MIT", "Apache-2.0"]},
        {"text": "c", "license": 5, "url": None},
    ]
    expected = [("http://e.org/a", "CC0-1.0"), (None, "MIT, Apache-2.0"), (None, None)]
    documents, [] = read("a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found = [(d.provenance.url, d.provenance.license) for d in documents]
    assert found == expected
    table = pa.table(
        {"text": ["a", "c"], "url": ["http://e.org/a", None], "licence": ["CC0-1.0"] * 2}
    )
    documents, [] = read("b.parquet", parquet(table))
    found = [(d.provenance.url, d.provenance.license) for d in documents]
    assert found == [("http://e.org/a", "CC0-1.0"), (None, "CC0-1.0")]


def test_a_rotten_row_group_costs_its_rows_alone(read) -> None:
    table = pa.table({"text": [f"text {index}" for index in range(300)]})
    options = {"compression": "zstd", "use_dictionary": False, "row_group_size": 100}
    data = bytearray(parquet(table, **options))
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    documents, [problem] = read("a.parquet", bytes(data))
    kept = [*range(100), *range(200, 300)]
    assert [document.text for document in documents] == [f"text {index}" for index in kept]
    assert documents[-1].provenance.place.endswith(", row 300")
    assert problem.place.endswith(", rows 101 to 200")
    assert problem.records == 100


@pytest.mark.parametrize("name", ["text", "language"])
def test_a_parquet_file_with_a_column_twice_is_one_problem(read, name: str) -> None:
    table = pa.table([pa.array(["x", "y"])] * 3, names=["text", name, name])
    documents, [problem] = read("a.parquet", parquet(table))
    assert (documents, problem.records) == ([], 2)
    assert "more than one column" in problem.reason


@pytest.mark.parametrize(
    ("name", "dates"),
    [
        ("url", pa.array([10**15, None], pa.timestamp("s"))),
        ("license", pa.array([2**31 - 1, None], pa.date32())),
    ],
)
def test_a_date_that_python_does_not_have_costs_its_row_alone(read, name: str, dates) -> None:
    documents, [problem] = read("a.parquet", parquet(pa.table({"text": ["a", "b"], name: dates})))
    assert [document.text for document in documents] == ["b"]
    assert problem.place.endswith(", row 1")


def test_the_mark_of_an_encoding_is_no_part_of_json(read) -> None:
    lines = "\ufeff" + '{"text": "a"}\n{"text": "b"}'
    documents, problems = read("a.jsonl", lines.encode())
    assert ([document.text for document in documents], problems) == (["a", "b"], [])


def test_one_value_over_many_lines_is_one_problem(read) -> None:
    documents, [problem] = read("a.json", json.dumps([{"text": "a"}] * 9, indent=2).encode())
    assert documents == []
    assert "expected an object a line" in problem.reason


def test_a_truncated_parquet_file_is_one_problem(read) -> None:
    documents, [problem] = read("a.parquet", parquet(pa.table({"text": ["x"] * 1000}))[:-50])
    assert documents == []
    assert "no readable Parquet" in problem.reason


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_json_lines_give_every_text_back(tmp_path_factory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    file = SourceFile(str(folder), "a.jsonl", 0, "sea", "sea")
    assert [record.text for record in read_json_lines(file)] == texts
