"""S3 behind a network that fails: what passes is waited out, what stays is named, without secrets."""

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from s3 import BUCKET, KEY_ID, SECRET, FaultyProxy, Server, free_port, silent_port

from panthalassa import retry
from panthalassa import storage as storage_module
from panthalassa.corpus.manifest import read_manifest
from panthalassa.errors import ConfigError, CorpusError
from panthalassa.storage import Storage, open_storage


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


@pytest.mark.parametrize("faults", [[], ["503", None, "reset", None]])
def test_a_large_object_goes_up_in_parts(
    proxy: FaultyProxy, tmp_path: Path, faults: list[str | None]
) -> None:
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    data = os.urandom(25 << 20)
    proxy.next(faults)
    storage.write("a", data)
    assert proxy.parts[f"{BUCKET}/{tmp_path.name}/a"] >= 3
    assert proxy.faults.total() == len(faults) - faults.count(None)
    assert storage.sha256("a") == hashlib.sha256(data).hexdigest()
    assert storage.files() == [("a", 25 << 20)]


@pytest.mark.parametrize("kind", ["503", "lost"])
def test_a_creation_is_tried_again(proxy: FaultyProxy, tmp_path: Path, kind: str) -> None:
    """Also when it was done, and only the answer was lost."""
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    proxy.next([kind, kind])
    storage.create("a", b"mine")
    assert proxy.faults[kind] == 2
    with pytest.raises(FileExistsError):
        storage.create("a", b"another's")


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


def test_a_machine_without_credentials_is_told_so_at_once(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    text = one_line(lambda: storage.create("a", b"1"))
    assert "Unable to locate credentials" in text
    assert "Check AWS_ACCESS_KEY_ID" in text
    assert "tries" not in text


@pytest.mark.parametrize(("name", "value"), [("AWS_REGION", "eu west"), ("AWS_PROFILE", "absent")])
def test_settings_that_the_sdk_refuses_are_named(
    s3: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    storage = open_storage(f"s3://{BUCKET}/corpus")
    text = one_line(lambda: storage.create("a", b"1"))
    assert value in text
    assert name in text


@pytest.mark.parametrize("endpoint", ["http://", "127.0.0.1:9000", "ftp://host"])
def test_an_endpoint_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=f"AWS_ENDPOINT_URL={endpoint}: expected http"):
        open_storage("s3://bucket/prefix")


def test_a_missing_bucket_name_is_said() -> None:
    with pytest.raises(ConfigError, match="the bucket is missing"):
        open_storage("s3://")


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
