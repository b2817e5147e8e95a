"""Large files to and from S3 behind a network that fails: no file is begun anew for one of its parts."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import BUCKET, FaultyProxy

from panthalassa import retry
from panthalassa import storage as storage_module
from panthalassa.storage import Storage, open_storage

PART = 5 << 20  # the least that S3 takes
KEY = f"{BUCKET}/files/large"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A network between this process and the server, which is well until it is told otherwise."""
    monkeypatch.setattr(storage_module, "SDK_TRIES", 1)
    monkeypatch.setattr(storage_module, "PART", PART)
    monkeypatch.setattr(storage_module, "CHUNK", PART)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    with FaultyProxy(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two parts and a bit."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART + 1000))
    return path


def files() -> Storage:
    return open_storage(f"s3://{BUCKET}/files")


def test_a_part_that_fails_is_sent_again_alone(proxy: FaultyProxy, large: Path) -> None:
    proxy.next([None, "reset", "503", "lost", None, None, None, "lost"])
    files().upload("large", large)
    assert proxy.faults == {"reset": 1, "503": 1, "lost": 2}
    assert proxy.parts[KEY] == 6, "three parts, three of whose tries failed"
    begun = [method for method, key, _ in proxy.requests if (method, key) == ("POST", KEY)]
    assert len(begun) == 3, "one beginning, and a completion that was asked for twice"
    assert files().read("large") == large.read_bytes()


def test_an_upload_that_can_not_be_ended_leaves_nothing(proxy: FaultyProxy, large: Path) -> None:
    files().upload("large", large)
    proxy.next([None, None, "denied"])
    changed = large.with_name("changed")
    changed.write_bytes(large.read_bytes()[::-1])
    with pytest.raises(OSError, match="refused"):
        files().upload("large", changed)
    assert ("DELETE", KEY) in [(method, key) for method, key, _ in proxy.requests]
    assert files().read("large") == large.read_bytes()
    files().delete("large")


def test_a_small_file_is_one_request(proxy: FaultyProxy, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"content")
    proxy.next(["reset"])
    files().upload("small", small)
    assert proxy.parts == {}
    assert files().read("small") == b"content"


def test_a_download_goes_on_where_it_was_cut(
    proxy: FaultyProxy, large: Path, tmp_path: Path
) -> None:
    files().upload("large", large)
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    proxy.next([None, None, "cut", "reset"])
    assert files().download("large", tmp_path / "got", expected) == expected
    assert (tmp_path / "got").read_bytes() == large.read_bytes()
    assert proxy.faults.total() == 2
    assert proxy.downloads(KEY) <= 2
    proxy.next([None, "flip"])
    assert files().download("large", tmp_path / "got", expected) == expected
    assert proxy.faults["flip"] == 1


def test_what_is_not_what_it_should_be_is_said_and_not_hidden(
    proxy: FaultyProxy, tmp_path: Path
) -> None:
    files().write("rotten", b"rotten")
    found = files().download("rotten", tmp_path / "got", "0" * 64)
    assert found == hashlib.sha256(b"rotten").hexdigest()
    with pytest.raises(FileNotFoundError):
        files().download("absent", tmp_path / "got", found)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_folder_is_moved_whole(s3: str, tmp_path: Path, place: str) -> None:
    storage = open_storage(str(tmp_path) if place == "local" else f"s3://{BUCKET}/moved")
    for name in ("a/1", "a/b/2"):
        storage.write(name, name.encode())
    storage.move("a", "c")
    assert [name for name, _ in storage.files()] == ["c/1", "c/b/2"]
    assert storage.read("c/b/2") == b"a/b/2"


def test_a_local_upload_and_download_are_copies(tmp_path: Path, large: Path) -> None:
    storage = open_storage(str(tmp_path / "there"))
    storage.upload("copy", large)
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    assert storage.download("copy", tmp_path / "back", expected) == expected
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert [name for name, _ in storage.files()] == ["copy"]
