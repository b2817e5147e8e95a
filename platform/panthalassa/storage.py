"""One door to object storage: local paths and `s3://` URIs through the same few calls.

Everything the platform keeps (corpora, checkpoints, runs) is a tree of immutable objects below a
root. `Storage` reads and writes them by relative path. A write is all or nothing: locally through a
temporary file and a rename, on S3 by the service itself. S3's endpoint, region and credentials come
from the usual AWS variables and are never printed or pickled.

Every call to S3 waits out the failures that pass, up to `patience` (`retry.py`). A connection that
is silent for some seconds counts as lost.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import boto3
import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection

from panthalassa.errors import ConfigError
from panthalassa.redact import PARAMETERS, without_secrets
from panthalassa.retry import endpoint_url, retrying

CHUNK = 8 << 20
DOWNLOADS = 4
DELETES_AT_ONCE = 16
PART = 16 << 20
"""Bytes of a part of an upload, of which so many are in memory; S3 takes PARTS in all."""
UPLOADS_AT_ONCE = 4
PARTS = 10_000
PRECONDITION_FAILED = 412
PATIENCE = 20.0
CONNECT_SECONDS = 4.0
SILENT_SECONDS = 4.0
"""Despite pyarrow's documentation this is heeded on Linux too, as curl's low-speed time: no answer
for so long ends the try; in mid-body it takes some five seconds more."""
SDK_TRIES = 2
"""One retry of the SDK's own, for those who use `filesystem` without this module."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Storage:
    """A root in a file system; every `path` below is relative to it and uses `/`.

    `patience`: the seconds for which a call to S3 is tried again.
    """

    filesystem: pafs.FileSystem = field(hash=False)
    root: str
    uri: str
    patience: float = PATIENCE
    endpoint: str | None = None
    region: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes take the credentials from their own environment."""
        return open_storage, (self.uri, self.patience, self.endpoint, self.region)

    def path(self, path: str) -> str:
        """The path as the file system wants it, e.g. for `pyarrow.parquet`."""
        return f"{self.root}/{path}" if path else self.root

    def below(self, path: str) -> "Storage":
        """The same storage, rooted one or more folders deeper."""
        return replace(self, root=self.path(path), uri=f"{self.uri}/{path}")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self, path: str) -> bool:
        """Raises OSError when that can not be known, as when the bucket is absent."""
        return bool(self._info(path).type != pafs.FileType.NotFound)

    def size(self, path: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""
        info = self._info(path)
        if info.size is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return int(info.size)

    def read(self, path: str, sha256: str | None = None) -> bytes:
        """The whole object. Raises FileNotFoundError or OSError.

        From S3 it is downloaded until it is what `sha256` says, or else until two downloads agree,
        because nothing on the way notices a flipped bit. What never matches `sha256` is returned as it
        came last.
        """
        if self.is_local:
            with self.filesystem.open_input_stream(self.path(path), None) as stream:
                return bytes(stream.read())
        before: bytes | None = None
        for _ in range(DOWNLOADS):
            data = b"".join(self.chunks(path))
            if data == before or hashlib.sha256(data).hexdigest() == sha256:
                return data
            before = data
        if sha256 is None:
            raise OSError(f"{self.uri}/{path}: {DOWNLOADS} downloads differ; suspect the network")
        return data

    def chunks(self, path: str) -> Iterator[bytes]:
        """The object in pieces of CHUNK bytes; on S3 each is a request with its own patience."""
        if self.is_local:
            with self.filesystem.open_input_stream(self.path(path), None) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
            return

        try:
            file = self._retrying(path, lambda: self.filesystem.open_input_file(self.path(path)))
        except FileNotFoundError:
            self._check_bucket()
            raise
        with file:
            size = file.size()
            for offset in range(0, size, CHUNK):
                count = min(CHUNK, size - offset)
                yield bytes(self._retrying(path, partial(file.read_at, count, offset)))

    def sha256(self, path: str) -> str:
        if self.is_local:
            with open(self.path(path), "rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Write the object whole; a crash leaves either the old one or the new one."""
        if not self.is_local:
            self._retrying(path, lambda: self._upload(path, data))
            return
        with self._staged(path, data) as (temporary, target):
            os.replace(temporary, target)

    def create(self, path: str, data: bytes) -> None:
        """Write an object that is not there yet; of several who try at once, one succeeds.

        Raises FileExistsError when it is there with other content than `data`.
        """
        try:
            if not self.is_local:
                self._request(self._client().put_object, path, Body=data, IfNoneMatch="*")
                return
            with self._staged(path, data) as (temporary, target):
                os.link(temporary, target)
        except FileExistsError:
            if self.read(path) != data:  # else a first try went through, and its answer was lost
                raise

    @contextmanager
    def _staged(self, path: str, data: bytes) -> Iterator[tuple[str, Path]]:
        """A temporary file with `data` on disk, beside its target."""
        target = Path(self.path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            yield temporary, target
        finally:
            Path(temporary).unlink(missing_ok=True)

    def folders(self) -> list[str]:
        """Names of the folders directly below the root, sorted; empty when there is no root."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        found = self._retrying("", lambda: self.filesystem.get_file_info(selector))
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.Directory)

    def files(self) -> list[tuple[str, int]]:
        """Relative path and size in bytes of every file at any depth below the root, sorted.

        Raises FileNotFoundError when there is no root, OSError when it is no folder.
        """
        selector = pafs.FileSelector(self.root, recursive=True)
        found = self._retrying("", lambda: self.filesystem.get_file_info(selector))
        start = len(self.root.rstrip("/")) + 1
        return sorted(
            (entry.path[start:], entry.size or 0)
            for entry in found
            if entry.type != pafs.FileType.Directory
        )

    def delete(self, path: str) -> None:
        """Delete an object, or a folder with all that is in it. Raises FileNotFoundError."""
        kind = self._info(path).type
        if kind == pafs.FileType.NotFound:
            raise FileNotFoundError(f"{self.uri}/{path}")
        folder = kind == pafs.FileType.Directory
        if self.is_local:
            delete = self.filesystem.delete_dir if folder else self.filesystem.delete_file
            delete(self.path(path))
            return
        inside = [f"{path}/{name}" for name, _ in self.below(path).files()] if folder else [path]
        client = self._client()  # pyarrow would leave an empty object for each folder
        with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
            for _ in pool.map(partial(self._request, client.delete_object), inside):
                pass

    def move(self, path: str, to: str) -> None:
        """Rename a folder. On S3 its objects are copied there, and then deleted here."""
        if self.is_local:
            os.rename(self.path(path), self.path(to))
            return
        client, bucket = self._client(), self.root.partition("/")[0]
        for name, _ in self.below(path).files():
            key = self.path(f"{path}/{name}").partition("/")[2]
            source = {"Bucket": bucket, "Key": key}
            self._request(client.copy, f"{to}/{name}", CopySource=source)
        self.delete(path)

    def upload(self, path: str, file: Path) -> None:
        """Write a large object from a file, in parts of which each is tried again; all or nothing."""
        if self.is_local:
            with self._staged(path, b"") as (temporary, target):
                shutil.copyfile(file, temporary)
                with open(temporary, "rb") as copied:
                    os.fsync(copied.fileno())
                os.replace(temporary, target)
            return
        size = file.stat().st_size
        if size <= PART:
            self._request(self._client().put_object, path, Body=file.read_bytes())
            return
        client, part = self._client(), max(PART, -(-size // PARTS))
        upload = self._request(client.create_multipart_upload, path)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as source:
                source.seek((number - 1) * part)
                data = source.read(part)
            sent = self._request(
                client.upload_part, path, UploadId=upload, PartNumber=number, Body=data
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
                parts = list(pool.map(send, range(1, -(-size // part) + 1)))
            whole = {"Parts": parts}
            self._request(
                client.complete_multipart_upload, path, UploadId=upload, MultipartUpload=whole
            )
        except BaseException as error:
            # A completion whose answer was lost is not there any more when it is tried again.
            if "NoSuchUpload" in str(error) and self.exists(path) and self.size(path) == size:
                return
            with suppress(OSError):
                self._request(client.abort_multipart_upload, path, UploadId=upload)
            raise

    def download(self, path: str, file: Path, sha256: str) -> str:
        """Write an object to a file, in pieces of which each is tried again; returns its SHA-256.

        From S3 again, until it is what `sha256` says or comes twice alike. Raises as `read` does.
        """
        before = None
        for _ in range(DOWNLOADS):
            digest = hashlib.sha256()
            with file.open("wb") as target:
                for chunk in self.chunks(path):
                    target.write(chunk)
                    digest.update(chunk)
            found = digest.hexdigest()
            if found in (sha256, before) or self.is_local:
                break
            before = found
        return found

    def _request(self, call: Callable[..., Any], path: str, **arguments: Any) -> Any:
        """A call of boto3's on an object, for what pyarrow does not offer, with pyarrow's errors."""
        bucket, _, key = self.path(path).partition("/")

        def request() -> Any:
            try:
                return call(Bucket=bucket, Key=key, **arguments)
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status == PRECONDITION_FAILED:
                    raise FileExistsError(f"{self.uri}/{path}") from error
                raise OSError(f"{error} (HTTP status {status})") from error
            except (NoConnection, HTTPClientError) as error:
                raise OSError(f"AWS Error NETWORK_CONNECTION: {error}") from error
            except BotoCoreError as error:  # no credentials, or none that are whole
                raise OSError(f"AWS Error ACCESS_DENIED: {error}") from error

        return self._retrying(path, request)

    def _client(self) -> Any:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENT_SECONDS,
            retries={"max_attempts": 0},
            s3={"addressing_style": "path" if self.endpoint else "auto"},
        )
        try:
            return boto3.Session().client(
                "s3", endpoint_url=self.endpoint, region_name=self.region, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise OSError(
                f"{self.uri}: {error}. Check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE"
            ) from error

    def _retrying(self, path: str, operation: Callable[[], Result]) -> Result:
        if self.is_local:
            return operation()
        return retrying(operation, f"{self.uri}/{path}".rstrip("/"), self.patience)

    def _info(self, path: str) -> pafs.FileInfo:
        info = self._retrying(path, lambda: self.filesystem.get_file_info(self.path(path)))
        if info.type == pafs.FileType.NotFound:
            self._check_bucket()
        return info

    def _check_bucket(self) -> None:
        """Raise OSError when the bucket is absent: S3 answers that no object is there, either."""
        if self.is_local:
            return
        bucket = self.root.partition("/")[0]
        try:
            info = self._retrying("", lambda: self.filesystem.get_file_info(bucket))
        except OSError:
            return  # a key may be allowed to read objects, and not to ask this
        if info.type == pafs.FileType.NotFound:
            raise OSError(
                f"{self.uri}: there is no bucket {bucket}. Correct its name, AWS_REGION or "
                "AWS_ENDPOINT_URL, or create it"
            )

    def _upload(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(self.path(path), None) as stream:
            stream.write(data)


def open_storage(
    uri: str,
    patience: float = PATIENCE,
    endpoint: str | None = None,
    region: str | None = None,
) -> Storage:
    """The storage at a local path or an `s3://bucket/prefix` URI; nothing is created or read.

    `patience`: the seconds for which a call to S3 is tried again while its failure may pass.
    `endpoint` and `region` of S3 are otherwise those of the environment.
    Raises ConfigError for another scheme, or when the URI holds credentials.
    """
    parsed = urlparse(uri)
    if "://" in uri and parsed.scheme not in ("s3", "file"):
        raise ConfigError(
            f"storage {parsed.scheme}://: there are local paths and s3://bucket/prefix"
        )
    bucket, _, prefix = uri[len("s3://") :].partition("/")  # whole names, also with ? and #
    if parsed.scheme == "s3" and (set(bucket) & set("@:") or PARAMETERS.search(prefix)):
        raise ConfigError(
            "storage s3://: credentials do not belong in the URI, where they would be printed. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and write s3://bucket/prefix."
        )
    if parsed.scheme == "s3":
        if not bucket:
            raise ConfigError(f"storage {uri}: the bucket is missing, as in s3://bucket/prefix")
        endpoint = endpoint or endpoint_url()
        where = urlparse(endpoint or "https://aws")
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ConfigError(
                f"AWS_ENDPOINT_URL={without_secrets(str(endpoint))}: expected http://host:port or https://…"
            )
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        secure = not (endpoint or "https").startswith("http://")
        s3 = pafs.S3FileSystem(
            endpoint_override=endpoint,
            scheme="https" if secure else "http",
            region=region,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=SILENT_SECONDS,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=SDK_TRIES),
            allow_delayed_open=True,  # a small object is one request, which is whole or not at all
        )
        root = f"{bucket}/{prefix.strip('/')}".rstrip("/")
        return Storage(s3, root, f"s3://{root}", patience, endpoint, region)
    path = os.path.abspath(os.path.expanduser(parsed.path if parsed.scheme == "file" else uri))
    return Storage(pafs.LocalFileSystem(), path, path, patience)
