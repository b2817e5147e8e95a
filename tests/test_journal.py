"""A journal has each line once and in order, also when one thread writes what others add."""

import threading
import time
from pathlib import Path

import pytest
from s3 import BUCKET

from panthalassa import journal
from panthalassa.journal import Journal, journals, newest_number, unread
from panthalassa.storage import Storage, open_storage


@pytest.fixture(params=["local", "s3"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    monkeypatch.setattr(journal, "INTERVAL", 0.0)
    monkeypatch.setattr(journal, "FULL", 1000)
    if request.param == "local":
        return open_storage(str(tmp_path))
    request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_a_thread_may_write_what_others_add(folder: Storage) -> None:
    written, done = Journal(folder, 1), threading.Event()

    def write_on() -> None:
        while not done.is_set():
            written.write()

    thread = threading.Thread(target=write_on)
    thread.start()
    lines = [f"line {number}" for number in range(3000)]
    for number, line in enumerate(lines):
        written.add(line)
        time.sleep(1e-5)  # the other thread's turn
        if number % 100 == 0 and written.due:
            written.write()
    done.set()
    thread.join()
    written.write()
    assert [list(found) for _, found in journals(folder)] == [lines]


def test_journals_come_by_their_numbers(folder: Storage) -> None:
    for number in (1_000_000, 2, 10):
        one = Journal(folder, number)
        one.add(str(number))
        one.write()
    assert [list(lines) for _, lines in journals(folder)] == [["2"], ["10"], ["1000000"]]
    assert [list(lines) for _, lines in journals(folder, before=10)] == [["2"]]
    assert newest_number(folder) == 1_000_000
    assert newest_number(folder, before=10) == 2


def test_a_reader_follows_what_grows(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in small pieces, across parts, and beside another writer: each line once, and whole."""
    monkeypatch.setattr(journal, "PIECE", 100)
    writers = {number: Journal(folder, number) for number in (1, 2)}
    read: dict[int, int] = {}
    found: dict[int, bytes] = {1: b"", 2: b""}
    for turn in range(15):
        for number, writer in writers.items():
            for line in range(turn % 7):
                writer.add(f"{number} {turn} {line}" + "x" * turn)
            writer.write()
        for number, before, piece in unread(folder, read):
            assert before == len(found[number])
            assert piece.endswith(b"\n")
            found[number] += piece
            read[number] = before + len(piece)
    whole = ["\n".join([*lines, ""]).encode() for _, lines in journals(folder)]
    assert [found[1], found[2]] == whole


def test_a_reader_leaves_a_line_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "000001.jsonl").write_bytes(b"one\ntw")
    folder = open_storage(str(tmp_path))
    assert list(unread(folder, {})) == [(1, 0, b"one\n")]
    assert list(unread(folder, {1: 4})) == []
    (tmp_path / "000001.jsonl").write_bytes(b"one\ntwo\n")
    assert list(unread(folder, {1: 4})) == [(1, 4, b"two\n")]
