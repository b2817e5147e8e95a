"""A hashed file is what was written to it, and its hash is that of all of it."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.train import hashed_file
from panthalassa.train.hashed_file import SMALL, HashedFile

SIZES = st.sampled_from([0, 1, 63, 64, 1000, SMALL, SMALL + 1, 5 * SMALL + 7])


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=12), st.sampled_from([1, SMALL]))
def test_the_hash_is_that_of_all_pieces_in_their_order(
    pieces: list[tuple[int, bool]], synced: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed_file, "SYNCED", synced)
        expected = b""
        with HashedFile(Path(folder, "file")) as file:
            for number, (size, aligned) in enumerate(pieces):
                if aligned:
                    expected += bytes(-len(expected) % 64)
                    assert file.align(64) == len(expected)
                data = bytes([number + 1]) * size
                file.write(memoryview(data))
                expected += data
                assert file.size == len(expected)
        assert Path(folder, "file").read_bytes() == expected
        assert file.digest == hashlib.sha256(expected).hexdigest()


def test_an_error_of_the_disk_is_raised_even_when_it_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(hashed_file, "SYNCED", 1)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="the disk is gone"), HashedFile(tmp_path / "file") as file:
        file.write(bytes(SMALL + 1))
    assert file.digest == ""


def test_a_file_that_is_given_up_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(BufferError), HashedFile(tmp_path / "file") as file:
        file.write(memoryview(b"half of it")[::2])
    assert file.digest == ""
