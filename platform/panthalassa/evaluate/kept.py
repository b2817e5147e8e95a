"""Answers that are kept: what was asked and answered before is not asked again.

Each chunk of answers is a file of its own, named by its SHA-256, in a folder named by all that answers
depend on. A file that is not what its name says counts as not there.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Likely, Request
from panthalassa.storage import Storage

READERS = 8
"""Files that are read at a time."""


def key_of(request: Request) -> str:
    """The same for equal requests alone."""
    written = json.dumps([type(request).__name__, *astuple(request)])
    return hashlib.sha256(written.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """The answers of one model under one setting."""

    folder: Storage

    def read(self, tell: Callable[[str], None]) -> dict[str, Answer]:
        """All of them by `key_of` their requests; what is damaged is told, and left out."""
        try:
            names = [name for name, _ in self.folder.files()]
        except FileNotFoundError:
            return {}
        found: dict[str, Answer] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for name, data in zip(names, pool.map(self._read, names), strict=True):
                if data is None:
                    tell(f"{self.folder.uri}/{name} is damaged: its requests are asked again")
                else:
                    found |= {
                        key: answer if isinstance(answer, str) else Likely(*answer)
                        for key, answer in json.loads(data).items()
                    }
        return found

    def _read(self, name: str) -> bytes | None:
        digest = name.removesuffix(".json")
        data = self.folder.read(name, digest)
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def write(self, answers: Mapping[str, Answer]) -> None:
        """Keep a chunk, whole or not at all. Raises PanthalassaError."""
        plain = {
            key: answer if isinstance(answer, str) else astuple(answer)
            for key, answer in answers.items()
        }
        data = json.dumps(plain).encode()
        try:
            self.folder.write(f"{hashlib.sha256(data).hexdigest()}.json", data)
        except OSError as error:
            raise PanthalassaError(
                f"answers can not be kept in {self.folder.uri}: {error}. Make room or mend the "
                "storage; the same command goes on."
            ) from error
