"""One door to object storage: local paths and `s3://` URIs through the same few calls.

Everything the platform keeps (corpora, checkpoints, runs) is a tree of immutable objects below a
root. `Storage` reads and writes them by relative path. A write is all or nothing: locally through a
temporary file and a rename, on S3 by the service itself. S3's endpoint, region and credentials come
from the usual AWS variables and are never printed.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import pyarrow.fs as pafs

from panthalassa.errors import ConfigError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Storage:
    """A root in a file system; every `path` below is relative to it and uses `/`."""

    filesystem: pafs.FileSystem
    root: str
    uri: str

    def path(self, path: str) -> str:
        """The path as the file system wants it, e.g. for `pyarrow.parquet`."""
        return f"{self.root}/{path}" if path else self.root

    def below(self, path: str) -> "Storage":
        """The same storage, rooted one or more folders deeper."""
        return Storage(self.filesystem, self.path(path), f"{self.uri}/{path}")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def exists(self, path: str) -> bool:
        kind = self.filesystem.get_file_info(self.path(path)).type
        return bool(kind != pafs.FileType.NotFound)

    def size(self, path: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""
        info = self.filesystem.get_file_info(self.path(path))
        if info.size is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        return int(info.size)

    def read(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError or OSError."""
        with self.filesystem.open_input_stream(self.path(path)) as stream:
            return bytes(stream.read())

    def chunks(self, path: str) -> Iterator[bytes]:
        with self.filesystem.open_input_stream(self.path(path)) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Write the object whole; a crash leaves either the old one or the new one."""
        if not self.is_local:
            with self.filesystem.open_output_stream(self.path(path)) as stream:
                stream.write(data)
            return
        target = Path(self.path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def folders(self) -> list[str]:
        """Names of the folders directly below the root, sorted; empty when there is no root."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.Directory)

    def files(self) -> list[tuple[str, int]]:
        """Relative path and size in bytes of every file at any depth below the root, sorted.

        Raises FileNotFoundError when there is no root, OSError when it is no folder.
        """
        found = self.filesystem.get_file_info(pafs.FileSelector(self.root, recursive=True))
        start = len(self.root.rstrip("/")) + 1
        return sorted(
            (entry.path[start:], entry.size or 0)
            for entry in found
            if entry.type != pafs.FileType.Directory
        )

    def delete(self, path: str) -> None:
        """Delete an object, or a folder with all that is in it."""
        if self.filesystem.get_file_info(self.path(path)).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(path))
        else:
            self.filesystem.delete_file(self.path(path))


def open_storage(uri: str) -> Storage:
    """The storage at a local path or an `s3://bucket/prefix` URI; nothing is created or read.

    Raises ConfigError for another scheme, or when the URI holds credentials.
    """
    parsed = urlparse(uri)
    if "://" in uri and parsed.scheme not in ("s3", "file"):
        raise ConfigError(
            f"storage {parsed.scheme}://: there are local paths and s3://bucket/prefix"
        )
    if parsed.scheme == "s3" and set(parsed.netloc) & set("@:"):
        raise ConfigError(
            "storage s3://: credentials do not belong in the URI, where they would be printed. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and write s3://bucket/prefix."
        )
    if parsed.scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        secure = not (endpoint or "https").startswith("http://")
        s3 = pafs.S3FileSystem(
            endpoint_override=endpoint,
            scheme="https" if secure else "http",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        )
        root = f"{parsed.netloc}/{parsed.path.strip('/')}".rstrip("/")
        return Storage(s3, root, f"s3://{root}")
    path = os.path.abspath(os.path.expanduser(parsed.path if parsed.scheme == "file" else uri))
    return Storage(pafs.LocalFileSystem(), path, path)
