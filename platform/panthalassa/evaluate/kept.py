"""Answers that are kept: what was asked and answered before is not asked again.

Each chunk of answers is a file of its own, named by its SHA-256, in a folder named by all that answers
depend on. A file that is not what its name says counts as not there.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Likely, Request, written
from panthalassa.storage import Storage


class Chunk(BaseModel):
    """What is in a file."""

    model_config = ConfigDict(extra="forbid")

    answers: dict[str, str | tuple[float, bool, int]]
    """By `key_of` their requests."""
    cut: set[str]
    """The keys of those that were read in part."""


READERS = 8
"""Files that are read at a time."""


def key_of(request: Request) -> str:
    """The same for equal requests alone."""
    return hashlib.sha256(json.dumps(written(request)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """The answers of one model under one setting."""

    folder: Storage

    def read(self, tell: Callable[[str], None]) -> tuple[dict[str, Answer], set[str]]:
        """All of them by `key_of` their requests, and the keys of those whose requests were read in
        part; what is damaged is told, and left out."""
        found: dict[str, Answer] = {}
        cut: set[str] = set()
        try:
            names = [name for name, _ in self.folder.files()]
        except FileNotFoundError:
            return found, cut
        with ThreadPoolExecutor(READERS) as pool:
            for name, chunk in zip(names, pool.map(self._read, names), strict=True):
                if chunk is None:
                    tell(f"{self.folder.uri}/{name} is damaged: its requests are asked again")
                else:
                    cut |= chunk.cut
                    found |= {
                        key: answer if isinstance(answer, str) else Likely(*answer)
                        for key, answer in chunk.answers.items()
                    }
        return found, cut

    def _read(self, name: str) -> Chunk | None:
        digest = name.removesuffix(".json")
        data = self.folder.read(name, digest)
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        try:
            return Chunk.model_validate_json(data)
        except ValidationError:
            return None

    def write(self, answers: Mapping[str, Answer], cut: Collection[str] = ()) -> None:
        """Keep a chunk, whole or not at all. Raises PanthalassaError."""
        plain = {
            key: answer if isinstance(answer, str) else astuple(answer)
            for key, answer in answers.items()
        }
        data = json.dumps({"answers": plain, "cut": sorted(cut)}).encode()
        try:
            self.folder.write(f"{hashlib.sha256(data).hexdigest()}.json", data)
        except OSError as error:
            raise PanthalassaError(
                f"answers can not be kept in {self.folder.uri}: {error}. Make room or mend the "
                "storage; the same command goes on."
            ) from error
