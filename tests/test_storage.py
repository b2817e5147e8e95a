"""One API over local folders and S3: whole objects, atomic writes, and names as they are."""

import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3 import BUCKET

from panthalassa.errors import ConfigError
from panthalassa.storage import CHUNK, Storage, open_storage


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a full disk: writes of this process beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["local", "s3", "moto"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root that does not exist yet; on S3 that of either server."""
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    request.getfixturevalue(request.param)
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


def test_what_is_written_is_read(storage: Storage) -> None:
    for path, data in [("a", b"one"), ("deep/er/b", b""), ("c.bin", bytes(range(256)) * 9000)]:
        assert not storage.exists(path)
        storage.write(path, data)
        assert storage.exists(path)
        assert storage.read(path) == data
        assert storage.size(path) == len(data)
        assert b"".join(storage.chunks(path)) == data
        assert storage.sha256(path) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["a.gz", "a.bz2", "a.zst"])
def test_names_of_archives_change_no_byte(storage: Storage, name: str) -> None:
    data = b"no archive, whatever its name says"
    storage.write(name, data)
    assert storage.read(name) == data
    assert storage.size(name) == len(data)
    assert storage.sha256(name) == hashlib.sha256(data).hexdigest()


def test_large_objects_are_hashed_in_pieces(storage: Storage) -> None:
    data = os.urandom(2 * CHUNK + 17)
    storage.write("large", data)
    assert max(map(len, storage.chunks("large"))) <= CHUNK
    assert storage.sha256("large") == hashlib.sha256(data).hexdigest()


def test_a_later_write_replaces_the_whole_object(storage: Storage) -> None:
    storage.write("a", b"long and old")
    storage.write("a", b"new")
    assert storage.read("a") == b"new"


def test_folders_and_files_are_listed_from_the_root(storage: Storage) -> None:
    assert storage.folders() == []
    for path in ("b/x/1", "a/2", "top", "c/3"):
        storage.write(path, path.encode())
    assert storage.folders() == ["a", "b", "c"]
    assert storage.below("b").folders() == ["x"]
    assert storage.files() == [("a/2", 3), ("b/x/1", 5), ("c/3", 3), ("top", 3)]
    assert storage.below("b").files() == [("x/1", 5)]


def test_a_deleted_object_is_gone_and_its_neighbour_is_not(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.write("b", b"2")
    storage.delete("a")
    assert not storage.exists("a")
    assert storage.read("b") == b"2"


def test_a_deleted_folder_takes_all_with_it(storage: Storage) -> None:
    for number in range(20):
        storage.write(f"run/deep/{number}", b"1")
    storage.write("runs", b"2")
    storage.delete("run")
    assert storage.files() == [("runs", 1)]
    assert storage.folders() == []
    with pytest.raises(FileNotFoundError):
        storage.delete("run")


def test_what_is_created_is_not_written_over(storage: Storage) -> None:
    storage.create("deep/a", b"one")
    storage.create("deep/a", b"one")  # as when the answer to the first try was lost
    with pytest.raises(FileExistsError, match="deep/a"):
        storage.create("deep/a", b"two")
    assert storage.read("deep/a") == b"one"
    assert storage.files() == [("deep/a", 3)]


@pytest.mark.parametrize("storage", ["local", "s3"], indirect=True)  # moto can have two winners
def test_of_many_who_create_an_object_one_succeeds(storage: Storage) -> None:
    def create(number: int) -> bool:
        try:
            storage.create("a", b"%d" % number)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert storage.read("a") == b"%d" % won.index(True)


def test_what_is_not_there_is_said_so(storage: Storage) -> None:
    storage.write("there", b"1")
    for call in (storage.read, storage.size, storage.sha256):
        with pytest.raises(FileNotFoundError, match="absent"):
            call("absent")


def test_a_storage_below_is_rooted_deeper(storage: Storage) -> None:
    inner = storage.below("runs").below("first")
    inner.write("a", b"1")
    assert storage.read("runs/first/a") == b"1"
    assert inner.uri == f"{storage.uri}/runs/first"
    assert open_storage(inner.uri).read("a") == b"1"


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, old: bytes | None) -> None:
    """And no temporary file."""
    storage = open_storage(str(tmp_path))
    if old:
        storage.write("a", old)
    before = tree(tmp_path)
    with no_file_beyond(1000), pytest.raises(OSError, match="File too large"):
        storage.write("a", b"x" * 5000)
    assert tree(tmp_path) == before
    assert not old or storage.read("a") == old


def test_a_write_over_a_folder_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        open_storage(str(tmp_path)).write("a", b"x")
    assert tree(tmp_path) == ["a"]


def test_a_process_that_dies_in_a_write_leaves_the_old_object(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("a", b"old")
    program = (
        "import os, sys\n"
        "from panthalassa.storage import open_storage\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "open_storage(sys.argv[1]).write('a', b'new')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == 9
    assert storage.read("a") == b"old"


def test_a_reader_never_sees_half_a_write(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    versions = [bytes([number]) * (1 << 18) for number in range(4)]
    storage.write("a", versions[0])
    ended = threading.Event()

    def write() -> None:
        for version in versions * 5:
            storage.write("a", version)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not ended.is_set() or not reads:
        assert storage.read("a") in versions
        reads += 1
    writer.join()


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    open_storage(str(tmp_path)).write("a", b"1")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_relative_paths_are_relative_to_where_they_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stay there, when the process goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    storage = open_storage("runs")
    assert storage.uri == storage.root == str(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.write("a", b"1")
    assert (tmp_path / "runs" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("spelling", ["{}/x", "file://{}/x", "{}/y/../x", "{}/x/"])
def test_a_local_path_has_one_name_however_it_is_spelled(tmp_path: Path, spelling: str) -> None:
    storage = open_storage(spelling.format(tmp_path))
    assert storage.is_local
    assert storage.uri == str(tmp_path / "x")


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/runs").root == str(tmp_path / "runs")


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b=c", "ä", "%41"])
def test_odd_names_are_taken_as_they_are(storage: Storage, name: str) -> None:
    storage.write(f"{name}/{name}", b"1")
    assert storage.folders() == [name]
    assert storage.below(name).read(name) == b"1"


def test_opening_creates_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "absent"))
    assert not storage.exists("")
    assert storage.folders() == []
    assert tree(tmp_path) == []


@pytest.mark.parametrize("uri", ["gs://bucket/a", "https://host/a", "hdfs://host/a", "s4://b/a"])
def test_another_scheme_is_refused_not_made_a_folder(uri: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_storage(uri)
