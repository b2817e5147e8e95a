"""Traces that were made before, in a folder of the user.

A recording is kept under the hash of everything that decides it: its job, the code that runs in a
trace, and the version of torch. Each file begins with the hash of the rest: what is torn or rotten
counts as absent.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from panthalassa.planner.recording import Job, Recording

FOLDER = Path("~/.cache/panthalassa/traces")

_DIGEST = 32
"""Bytes of SHA-256."""
_CODE = (
    "config.py",
    "config_model.py",
    "model/transformer.py",
    "model/vision.py",
    "parallel/mesh.py",
    "parallel/parallelize.py",
    "planner/recorder.py",
    "planner/recording.py",
    "planner/trace.py",
)
"""What a trace depends on, from the package's folder."""


class TraceCache:
    """Recordings in `folder`; several commands may use it at a time.

    A folder that can not be written to keeps nothing, and nothing fails.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder.expanduser()

    def read(self, job: Job) -> Recording | None:
        """The recording of a job, or None when there is none that is sound."""
        try:
            content = self.path(job).read_bytes()
        except OSError:
            return None
        digest, payload = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        try:
            return Recording.load(payload)
        except ValueError:
            return None

    def write(self, job: Job, payload: bytes) -> None:
        """Keep what `Recording.dump` gave."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=self.folder)
            try:
                with os.fdopen(file, "wb") as stream:
                    stream.write(hashlib.sha256(payload).digest() + payload)
                os.replace(name, self.path(job))
            except OSError:
                os.unlink(name)
                raise

    def path(self, job: Job) -> Path:
        """Where a job's recording is kept."""
        decisive = [job.dump(), _torch(), _code()]
        return self.folder / hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@cache
def _torch() -> str:
    return version("torch")


@cache
def _code() -> str:
    package = Path(__file__).parents[1]
    return _hash((package / name).read_bytes() for name in _CODE)


def _hash(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
