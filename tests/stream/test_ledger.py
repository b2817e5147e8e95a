"""The ledger: what is written comes back, whole or up to the tear, and nothing else passes for it."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phases import CORPUS, phase
from s3 import BUCKET

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.ledger import (
    Attempt,
    Consumed,
    Ledger,
    PassedOver,
    SampleHashes,
    accounts,
    digest_of,
    newest_attempt,
)
from panthalassa.stream.order import Location

STEPS = [Consumed(step=step, samples=4, digest=f"{step:032x}") for step in range(3, 9)]
QUARANTINED = Consumed(step=9, samples=2, digest="0" * 32, quarantined=[0, 3], skipped=True)
BACK = PassedOver(first_step=4, end_step=10)


def attempt(number: int = 1, first_step: int = 3) -> Attempt:
    return Attempt(
        attempt=number, first_step=first_step, dp_size=2, tp_size=1, began=1e9, phases=[phase(0)]
    )


def written(folder: Path) -> Storage:
    run = open_storage(str(folder))
    ledger = Ledger(run, attempt())
    for line in [*STEPS, QUARANTINED, BACK]:
        ledger.record(line)
    return run


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    run = written(tmp_path)
    (account,) = accounts(run)
    assert account.attempt == attempt()
    assert account.steps == [*STEPS, QUARANTINED]
    assert account.passed_over == [BACK]
    assert newest_attempt(run) == 1
    Ledger(run, attempt(2, 10))
    assert [a.attempt.attempt for a in accounts(run)] == [1, 2]
    assert newest_attempt(open_storage(str(tmp_path / "nothing"))) == 0
    assert list(accounts(open_storage(str(tmp_path / "nothing")))) == []


def test_every_line_is_on_disk_at_once_and_small(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    ledger = Ledger(run, attempt())
    path = tmp_path / "ledger" / "000001.jsonl"
    size = path.stat().st_size
    for consumed in STEPS:
        ledger.record(consumed)
        assert path.stat().st_size > size
        assert path.stat().st_size - size < 120
        size = path.stat().st_size


@given(st.data())
def test_a_torn_end_costs_the_line_that_it_tore(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = written(Path(folder))
        path = Path(folder) / "ledger" / "000001.jsonl"
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        found = list(accounts(run))
        lines = whole[:cut].count(b"\n")
        if lines == 0:
            assert found == []
        else:
            assert found[0].steps == [*STEPS, QUARANTINED][: lines - 1]


@given(st.data())
def test_any_other_change_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = written(Path(folder))
        path = Path(folder) / "ledger" / "000001.jsonl"
        whole = bytearray(path.read_bytes())
        end = bytes(whole).rindex(b"\n", 0, len(whole) - 1)  # behind it a tear explains it
        at = data.draw(st.integers(0, end - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(whole)
        with pytest.raises(PanthalassaError, match="ledger"):
            list(accounts(run))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_line_that_is_gone_is_noticed(tmp_path: Path, number: int) -> None:
    run = written(tmp_path)
    path = tmp_path / "ledger" / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    with pytest.raises(PanthalassaError, match="is not what was written there"):
        list(accounts(run))


def test_a_ledger_that_can_not_be_written_says_so_when_all_ranks_can_hear(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    ledger = Ledger(run, attempt())
    path = tmp_path / "ledger" / "000001.jsonl"
    hidden = path.rename(tmp_path / "hidden")
    path.mkdir()
    for consumed in STEPS:
        ledger.record(consumed)
    with pytest.raises(PanthalassaError, match=r"ledger .* can not be written"):
        ledger.flush()
    path.rmdir()
    os.rename(hidden, path)
    ledger.flush()
    (account,) = accounts(run)
    assert account.steps == STEPS, "and nothing was lost meanwhile"


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path))
    request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_a_ledger_is_never_written_over(run: Storage) -> None:
    first = Ledger(run, attempt())
    with pytest.raises(PanthalassaError, match="has an attempt 1, which did not have the lease"):
        Ledger(run, attempt().model_copy(update={"began": 2e9}))
    first.record(STEPS[0])
    first.flush()
    (account,) = accounts(run)
    assert account.steps == STEPS[:1]


def test_an_attempt_knows_the_one_before_it_whoever_came_later(run: Storage) -> None:
    for number in (1, 2, 5):
        Ledger(run, attempt(number))
    assert [newest_attempt(run, before) for before in (1, 2, 4, 5, 9)] == [0, 1, 2, 2, 5]


def test_one_thread_flushes_while_another_records(run: Storage) -> None:
    """Snapshots flush in the background: no line is lost, doubled, or out of order."""
    ledger, steps = Ledger(run, attempt()), 300 if run.is_local else 60
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            ledger.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    recorded = [Consumed(step=step, samples=4, digest=f"{step:032x}") for step in range(3, steps)]
    for consumed in recorded:
        ledger.record(consumed)
        time.sleep(0.0005)
    ended.set()
    thread.join()
    ledger.flush()
    (account,) = accounts(run)
    assert account.steps == recorded


def place(*rows: tuple[int, int, int, int]) -> Location:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Location(np.zeros_like(columns[0]), np.zeros_like(columns[0]), *columns)


def test_every_sample_has_a_hash_of_its_own() -> None:
    hashes = SampleHashes(CORPUS.shards)
    shard, group, row, part = np.meshgrid(*map(np.arange, (2, 8, 300, 8)), indexing="ij")
    rows = np.stack([a.ravel() for a in (shard, group, row, part)], axis=1)
    limbs = hashes.limbs(place(*map(tuple, rows.tolist())))
    assert len(np.unique(limbs, axis=0)) == len(rows)
    assert len(np.unique(limbs[:, :2], axis=0)) == len(rows), "each half suffices"
    assert limbs.min() >= 0
    assert limbs.max() < 1 << 32


def test_hashes_are_the_same_everywhere_and_always() -> None:
    """Known answers: a ledger is read long after it was written."""
    limbs = SampleHashes(CORPUS.shards).limbs(place((0, 0, 0, 0), (1, 2, 3, 4)))
    assert digest_of(limbs[0]) == GOLDEN[0]
    assert digest_of(limbs.sum(axis=0)) == GOLDEN[1]


GOLDEN = ["1a59ce3495503e4e48a76d9e3fb4b187", "c50d838b49527e53c1c91266285dab78"]


@given(st.lists(st.integers(0, 79), min_size=1), st.integers(1, 5))
def test_a_digest_does_not_depend_on_who_adds_it_up(samples: list[int], ranks: int) -> None:
    hashes = SampleHashes(CORPUS.shards)
    limbs = hashes.limbs(place(*((s % 2, 0, s, 0) for s in samples)))
    parts = [limbs[rank::ranks].sum(axis=0).astype(np.float64) for rank in range(ranks)]
    backwards = limbs[::-1].sum(axis=0)
    assert digest_of(np.sum(parts, axis=0)) == digest_of(backwards)
    value = sum(int(digest_of(limb), 16) for limb in limbs) % (1 << 128)
    assert int(digest_of(backwards), 16) == value
