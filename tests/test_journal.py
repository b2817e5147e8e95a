"""A journal has each line once and in order, also when one thread writes what others add."""

import threading
import time
from pathlib import Path

import pytest
from s3 import BUCKET

from panthalassa import journal
from panthalassa.journal import Journal, journals, next_number
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
    assert [found for _, found in journals(folder)] == [lines]


def test_journals_come_by_their_numbers(folder: Storage) -> None:
    for number in (1_000_000, 2, 10):
        one = Journal(folder, number)
        one.add(str(number))
        one.write()
    assert [lines for _, lines in journals(folder)] == [["2"], ["10"], ["1000000"]]
    assert [lines for _, lines in journals(folder, before=10)] == [["2"]]
    assert next_number(folder) == 1_000_001
