"""One API over local folders and S3: whole objects, atomic writes, and no secrets in what is said."""

import hashlib
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from s3 import (
    BUCKET,
    KEY_ID,
    SECRET,
    FaultyProxy,
    Server,
    free_port,
    s3_server,
    silent_port,
    use_s3,
)

from panthalassa import retry
from panthalassa import storage as storage_module
from panthalassa.corpus.manifest import read_manifest
from panthalassa.errors import ConfigError, CorpusError
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of a real S3 server; returns its endpoint."""
    use_s3(monkeypatch, server.url)
    return server.url


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root that does not exist yet."""
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    request.getfixturevalue("s3")
    return open_storage(f"s3://ocean/{tmp_path.name}")


def test_what_is_written_is_read(storage: Storage) -> None:
    for path, data in [("a", b"one"), ("deep/er/b", b""), ("c.bin", bytes(range(256)) * 9000)]:
        assert not storage.exists(path)
        storage.write(path, data)
        assert storage.exists(path)
        assert storage.read(path) == data
        assert storage.size(path) == len(data)
        assert b"".join(storage.chunks(path)) == data
        assert storage.sha256(path) == hashlib.sha256(data).hexdigest()


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


def check_deletion(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.write("b", b"2")
    storage.delete("a")
    assert not storage.exists("a")
    assert storage.read("b") == b"2"


def test_a_deleted_object_is_gone_and_its_neighbour_is_not(tmp_path: Path) -> None:
    check_deletion(open_storage(str(tmp_path)))


def test_a_deleted_object_is_gone_from_s3(s3: str) -> None:
    check_deletion(open_storage("s3://ocean/neighbours"))


def test_a_deleted_folder_takes_all_with_it(tmp_path: Path) -> None:
    check_deletion_of_folder(open_storage(str(tmp_path)))


def test_a_deleted_folder_takes_all_with_it_on_s3(s3: str) -> None:
    check_deletion_of_folder(open_storage("s3://ocean/folders"))


def check_deletion_of_folder(storage: Storage) -> None:
    for number in range(20):
        storage.write(f"run/deep/{number}", b"1")
    storage.write("runs", b"2")
    storage.delete("run")
    assert storage.files() == [("runs", 1)]
    assert storage.folders() == []
    with pytest.raises(FileNotFoundError):
        storage.delete("run")


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


def test_s3_is_told_from_local_paths(s3: str) -> None:
    storage = open_storage("s3://ocean/a/b/")
    assert not storage.is_local
    assert storage.uri == "s3://ocean/a/b"
    assert storage.path("c") == "ocean/a/b/c"
    assert isinstance(storage.filesystem, pafs.S3FileSystem)
    assert open_storage("s3://ocean").path("c") == "ocean/c"
    assert open_storage("S3://ocean/a?b#c").uri == "s3://ocean/a?b#c"


def test_the_endpoint_for_s3_goes_before_the_one_for_all(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    open_storage("s3://ocean/endpoint").write("a", b"1")
    assert open_storage("s3://ocean/endpoint").read("a") == b"1"


@pytest.mark.parametrize(
    "call",
    [
        lambda storage: storage.read("absent"),
        lambda storage: storage.size("absent"),
        lambda storage: storage.write("a", b"1"),
        lambda storage: storage.files(),
        lambda storage: storage.delete("absent"),
    ],
)
def test_no_credential_is_in_what_a_storage_says(
    s3: str, call: Callable[[Storage], object]
) -> None:
    storage = open_storage("s3://no-such-bucket/prefix")
    with pytest.raises(OSError, match="no-such-bucket") as refusal:
        call(storage)
    for text in (str(storage), repr(storage), str(refusal.value), repr(refusal.value)):
        assert SECRET not in text
        assert KEY_ID not in text


@pytest.mark.parametrize(
    "user", [f"{KEY_ID}:s3cr3t@", f"{KEY_ID}:{SECRET}@", "s3cr3t@", "a?s3cr3t@"]
)
def test_credentials_in_a_uri_are_refused_without_repeating_them(user: str) -> None:
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as refusal:
        open_storage(f"s3://{user}ocean/prefix")
    assert "s3cr3t" not in str(refusal.value)
    assert KEY_ID not in str(refusal.value)


@pytest.mark.parametrize("uri", ["gs://bucket/a", "https://host/a", "hdfs://host/a", "s4://b/a"])
def test_another_scheme_is_refused_not_made_a_folder(uri: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_storage(uri)


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A network between this process and the server, which is well until it is told otherwise.

    The SDK's own retry is off, so that all is left to this platform's.
    """
    monkeypatch.setattr(storage_module, "SDK_TRIES", 1)
    monkeypatch.setattr(storage_module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.02)
    with FaultyProxy(s3, stall=1.5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def one_line(call: Callable[[], object]) -> str:
    """What the call raises, which holds no credentials."""
    with pytest.raises((OSError, CorpusError)) as refusal:
        call()
    text = str(refusal.value)
    assert "\n" not in text
    for said in (text, repr(refusal.value)):
        assert SECRET not in said
        assert KEY_ID not in said
    return text


OPERATIONS: dict[str, tuple[Callable[[Storage], object], object]] = {
    "read": (lambda storage: storage.read("a"), b"old"),
    "sha256": (lambda storage: storage.sha256("a"), hashlib.sha256(b"old").hexdigest()),
    "size": (lambda storage: storage.size("a"), 3),
    "exists": (lambda storage: storage.exists("a"), True),
    "write": (lambda storage: storage.write("a", b"new"), None),
    "files": (lambda storage: storage.files(), [("a", 3)]),
    "folders": (lambda storage: storage.folders(), []),
}


@pytest.mark.parametrize("kind", ["503", "reset"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_that_passes_is_waited_out(
    server: Server, proxy: FaultyProxy, tmp_path: Path, name: str, kind: str
) -> None:
    """However many of the first tries fail."""
    call, expected = OPERATIONS[name]
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    storage.write("a", b"old")
    proxy.requests.clear()
    proxy.fail(5, kind)
    assert call(storage) == expected
    assert proxy.faults[kind] == 5
    assert storage.read("a") == (b"new" if name == "write" else b"old")


@pytest.mark.parametrize("kind", ["503", "lost"])
def test_a_deletion_is_tried_again(proxy: FaultyProxy, kind: str) -> None:
    """Also when it was done, and only the answer was lost."""
    storage = open_storage(f"s3://{BUCKET}")
    storage.write("deleted", b"1")
    proxy.next([None, kind, kind, kind, kind])
    storage.delete("deleted")
    assert proxy.faults[kind] == 4
    assert not storage.exists("deleted")


def test_a_large_object_goes_on_where_it_was_cut(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "CHUNK", 1 << 16)
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    data = os.urandom(5 << 16)
    storage.write("a", data)
    proxy.requests.clear()
    proxy.next([None, None, None, "cut", "cut", "cut"])
    assert storage.read("a", hashlib.sha256(data).hexdigest()) == data
    assert proxy.faults["cut"] == 3
    spans = [span for method, _, span in proxy.requests if method == "GET"]
    starts = [int(span.removeprefix("bytes=").partition("-")[0]) >> 16 for span in spans]
    assert starts == [0, 1, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("flips", [1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_a_flipped_bit_is_noticed_with_and_without_a_hash(
    proxy: FaultyProxy, tmp_path: Path, flips: int, known: bool
) -> None:
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    storage.write("a", b"an object")
    proxy.next(["flip"] * flips)
    digest = hashlib.sha256(b"an object").hexdigest() if known else None
    assert storage.read("a", digest) == b"an object"
    assert proxy.faults["flip"] == flips


@pytest.mark.parametrize("kind", ["denied", "unknown_key", "signature", "expired"])
def test_refused_credentials_are_told_at_once(proxy: FaultyProxy, kind: str) -> None:
    proxy.rate, proxy.kinds = 1.0, (kind,)
    storage = open_storage(f"s3://{BUCKET}/corpus")
    calls = [
        lambda: read_manifest(storage),
        lambda: storage.exists("a"),
        lambda: storage.write("a", b"1"),
        lambda: storage.files(),
    ]
    for call in calls:
        proxy.requests.clear()
        text = one_line(call)
        assert f"s3://{BUCKET}/corpus" in text
        assert "Check AWS_ACCESS_KEY_ID" in text
        assert len(proxy.requests) == 1


def test_an_absent_bucket_is_named(s3: str) -> None:
    storage = open_storage("s3://no-such-bucket/corpus")
    calls = [lambda: read_manifest(storage), lambda: storage.exists("a"), lambda: storage.size("a")]
    for call in calls:
        assert "there is no bucket no-such-bucket" in one_line(call)


def check_unreachable(endpoint: str, patience: float) -> None:
    for call in (read_manifest, lambda storage: storage.exists("a")):
        text = one_line(lambda call=call: call(open_storage("s3://ocean/corpus", patience)))
        assert f"no answer from {endpoint}" in text
        assert "tries in" in text
        assert "Check AWS_ENDPOINT_URL" in text


def test_an_endpoint_that_is_not_there_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(storage_module, "SDK_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    check_unreachable(endpoint, 1.0)


def test_an_endpoint_that_never_answers_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(storage_module, "SDK_TRIES", 1)
    with silent_port() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        check_unreachable(endpoint, 4.0)


def test_a_pickled_storage_is_the_same_without_credentials(s3: str) -> None:
    for storage in (open_storage("s3://ocean/a?b#c", 7.0), open_storage("/tmp/a b", 7.0)):
        pickled = pickle.dumps(storage.below("x"))
        assert SECRET.encode() not in pickled
        assert KEY_ID.encode() not in pickled
        again = pickle.loads(pickled)  # noqa: S301
        assert (again.uri, again.root, again.patience) == (
            f"{storage.uri}/x",
            f"{storage.root}/x",
            7.0,
        )
