"""The spool tells what was logged: whole lines only, changed ones by name, and each step once."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3 import BUCKET

from panthalassa import journal
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage, open_storage
from panthalassa.tracking.spool import (
    RANKS,
    Record,
    Spool,
    decode,
    encode,
    read,
    series,
)

BEGAN = Record("attempt", 1.5, 0, {"dp_size": 2})
VALUES = st.dictionaries(
    st.text(max_size=8), st.one_of(st.floats(), st.integers(-(2**53), 2**53), st.text()), max_size=4
)
RECORDS = st.builds(
    Record,
    st.sampled_from(["attempt", "metrics", "parameters", "tags", "dataset", "artifact", "status"]),
    st.floats(0, 1e10),
    st.integers(0, 2**53),
    VALUES,
)


def step_of(step: int, loss: float) -> Record:
    return Record("metrics", 100.0 + step, step, {"loss": loss})


def spooled(run: Storage, records: list[Record], attempt: int = 1) -> None:
    spool = Spool(run.below(RANKS), records[0], attempt)
    for record in records[1:]:
        spool.log(record)
    spool.close()


def losses(run: Storage) -> list[tuple[int, float]]:
    return [(step, value) for step, _, value in series(run).get("loss", [])]


@given(RECORDS)
def test_a_line_is_its_record_to_the_last_bit(record: Record) -> None:
    line = encode(record)
    assert "\n" not in line
    assert repr(decode(line.encode())) == repr(record)  # NaN is not equal to itself


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path))
    monkeypatch.setattr(journal, "INTERVAL", 0.0)
    monkeypatch.setattr(journal, "FULL", 1000)  # so that there are many parts
    request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_records_come_back_in_order(run: Storage) -> None:
    records = [BEGAN, *(step_of(step, math.nan) for step in range(1, 200))]
    spooled(run, records)
    assert repr(read(run)) == repr(records)
    assert len(losses(run)) == 199


def test_records_are_written_without_being_asked_for(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    spool = Spool(run.below(RANKS), BEGAN, 1)
    spool.log(step_of(1, 2.0))
    until = time.monotonic() + 60
    while losses(run) != [(1, 2.0)]:
        assert time.monotonic() < until
        time.sleep(0.05)
    spool.close()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A spool on disk, and its bytes."""
    root = tmp_path_factory.mktemp("lines")
    spooled(open_storage(str(root)), [BEGAN, *(step_of(step, 1 / step) for step in range(1, 6))])
    file = root / RANKS / "000001.jsonl"
    return file, file.read_bytes()


@given(st.data())
def test_a_line_that_was_cut_off_is_left_out(
    lines: tuple[Path, bytes], data: st.DataObject
) -> None:
    file, whole = lines
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    assert len(read(open_storage(str(file.parents[2])))) == whole[:cut].count(b"\n")


@given(st.data())
def test_a_line_that_was_changed_is_named(lines: tuple[Path, bytes], data: st.DataObject) -> None:
    file, whole = lines
    changed = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 2))  # without the last end of line: that is a cut
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    line = whole[:at].count(b"\n") + 1
    with pytest.raises(
        PanthalassaError, match=f"000001.jsonl: line {line} is not what was written"
    ):
        read(open_storage(str(file.parents[2])))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=8), st.booleans())
def test_each_step_counts_once_as_it_was_last(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]], restarts: bool
) -> None:
    """Steps go on from somewhere at or before where they were, within an attempt or in a new one."""
    run = open_storage(str(tmp_path_factory.mktemp("history")))
    stands: list[float] = []
    attempts: list[list[Record]] = [[BEGAN]]
    value = 0.0
    for back, steps in parts:
        first = min(back, len(stands))
        if restarts:
            attempts.append([Record("attempt", 0.0, first, {})])
            stands = stands[:first]
        for step in range(first + 1, first + steps + 1):
            value += 1
            stands = [*stands[: step - 1], value]
            attempts[-1].append(step_of(step, value))
    for number, records in enumerate(attempts, 1):
        spooled(run, records, number)
    assert losses(run) == list(enumerate(stands, 1))


def test_what_a_full_disk_refuses_is_written_later(make_disk: Callable[[str], Path]) -> None:
    disk = make_disk("200k")
    run = open_storage(str(disk))
    spool = Spool(run.below(RANKS), BEGAN, 1)
    spool.flush()
    block = disk / "block"
    block.write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    steps = 200  # more than fit into what the file has left of its page
    for step in range(1, steps):
        spool.log(step_of(step, 0.5))
    spool.flush()
    assert len(losses(run)) < steps - 1
    block.unlink()
    spool.close()
    assert losses(run) == [(step, 0.5) for step in range(1, steps)]


WRITER = """
import sys
from panthalassa.storage import open_storage
from panthalassa.tracking.spool import RANKS, Record, Spool

spool = Spool(open_storage(sys.argv[1]).below(RANKS), Record("attempt", 0.0, 0, {}), 1)
for step in range(1, 1_000_000):
    spool.log(Record("metrics", 0.0, step, {"loss": step / 10}))
    if step % 100 == 0:
        spool.flush()
        print(step, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_what_was_flushed_outlives_the_writers_death(tmp_path: Path, seed: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout
    for _ in range(random.Random(seed).randint(1, 30)):
        flushed = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    found = losses(open_storage(str(tmp_path)))
    assert len(found) >= flushed
    assert found == [(step, step / 10) for step in range(1, len(found) + 1)]
