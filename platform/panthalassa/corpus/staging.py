"""Staging: what a preparation keeps between its stages, so that it goes on where it was killed.

A stage works on the input partition by partition, each of which gives tables and then a note, a
text. Both are written below `staging/{stage}/` in the folder of the corpus: a table as soon as it is
there, the note last of all, with the SHA-256 of each table and its own. So a note says that its
partition is done, and a partition that is asked for again gives its note instead of doing the work.
The folder goes when the manifest stands.
"""

import hashlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from panthalassa.corpus.shards import write
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

STAGING = "staging"
TASK: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}
"""Of Ray tasks that mostly wait."""
COMPUTING: dict[str, Any] = {**TASK, "num_cpus": 1}
MOST_TASKS = 3000
"""Of a stage. Encoding leaves a table for each of its tasks and each that writes: so they are nine
million at most."""
TOLD = 10
"""Times that a stage of so many partitions and more tells how far it is."""

Tables = Generator[tuple[str, pa.Table], None, str]
"""Tables, each with the name of its kind; at the end the note."""


@dataclass(frozen=True)
class Stage:
    """A stage by its `name`, of the corpus at `storage`. `made_from` is the SHA-256 of all that
    decides what it gives; what was kept for another one is done again."""

    storage: Storage
    name: str
    made_from: str

    def run(
        self,
        partitions: Sequence[str],
        work: Callable[[int, str], Tables],
        tell: Callable[[str], None] = lambda line: None,
    ) -> Iterator[str]:
        """The notes of all partitions, in any order, each of which is a task of Ray Data's.

        work: from the number of a partition, and what describes it.
        """
        rows = [{"number": n, "partition": p} for n, p in enumerate(partitions)]
        notes: ray.data.Dataset = ray.data.from_items(
            rows, override_num_blocks=len(rows)
        ).map_batches(partial(_keep_one, stage=self, work=work), batch_size=1, **COMPUTING)
        step = len(rows) / TOLD
        for done, row in enumerate(notes.iter_rows(), 1):
            yield row["note"]
            if step >= 1 and done // step > (done - 1) // step:
                tell(f"{self.name}: {done} of {len(rows)} partitions")

    def keep(self, number: int, make: Callable[[], Tables]) -> str:
        """The note of a partition that is kept, or else of its tables, which are made and written.

        Raises CorpusError when they can not be written.
        """
        if kept := self._read(number):
            return str(kept["note"])
        written: dict[str, list[tuple[str, int]]] = {}
        tables = make()
        while True:
            try:
                kind, table = next(tables)
            except StopIteration as end:
                return self._finish(number, written, end.value)
            of_kind = written.setdefault(kind, [])
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            data = buffer.getvalue()
            write(self.storage, self._table(number, kind, len(of_kind)), data)
            of_kind.append((hashlib.sha256(data).hexdigest(), len(table)))

    def keep_note(self, make: Callable[[], str]) -> str:
        """The note of a stage that is no more than this."""
        kept = self._read(0)
        return str(kept["note"]) if kept else self._finish(0, {}, make())

    def tables(self, number: int, kind: str) -> Iterator[pa.Table]:
        """The tables of one kind of a partition that is kept, in their order.

        Raises CorpusError when one of them is not what it was.
        """
        for table, _ in self.tables_with(number, kind, lambda first, stop: True):
            yield table

    def tables_with(
        self, number: int, kind: str, wanted: Callable[[int, int], bool]
    ) -> Iterator[tuple[pa.Table, int]]:
        """Those of the tables that are wanted by their rows, `first` to before `stop` of all, and
        `first`."""
        kept, stop = self._read(number), 0
        if kept is None:
            raise self._spoilt(self._note(number), "is missing or not what was written")
        for index, (sha256, rows) in enumerate(kept["tables"].get(kind, [])):
            first, stop = stop, stop + rows
            if not wanted(first, stop):
                continue
            path = self._table(number, kind, index)
            try:
                data = self.storage.read(path, sha256)
            except OSError as error:
                raise self._spoilt(path, f"can not be read ({error})") from error
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._spoilt(path, "is not what was written")
            yield pq.read_table(io.BytesIO(data)), first

    def _finish(self, number: int, tables: dict[str, list[tuple[str, int]]], note: str) -> str:
        body = {"made_from": self.made_from, "tables": tables, "note": note}
        encoded = json.dumps(body).encode()
        digest = hashlib.sha256(encoded).hexdigest().encode()
        write(self.storage, self._note(number), digest + b"\n" + encoded)
        return note

    def _read(self, number: int) -> dict[str, Any] | None:
        """What stands behind a note; None when there is none, or it is rotten or another's."""
        try:
            digest, _, encoded = self.storage.read(self._note(number)).partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._spoilt(self._note(number), f"can not be read ({error})") from error
        if hashlib.sha256(encoded).hexdigest().encode() != digest:
            return None
        body: dict[str, Any] = json.loads(encoded)
        return body if body["made_from"] == self.made_from else None

    def _note(self, number: int) -> str:
        return f"{STAGING}/{self.name}/{number:05d}.json"

    def _table(self, number: int, kind: str, index: int) -> str:
        return f"{STAGING}/{self.name}/{number:05d}/{kind}-{index:05d}.parquet"

    def _spoilt(self, path: str, what: str) -> CorpusError:
        return CorpusError(
            f"{self.storage.uri}/{path} {what}. Remove {self.storage.uri}/{STAGING}, and the same "
            "command makes it anew; shards that are written are kept."
        )


def _keep_one(
    batch: pa.Table, stage: Stage, work: Callable[[int, str], Tables]
) -> Iterator[pa.Table]:
    """A generator, because Ray Data (2.60) passes on the errors of these alone as they are."""
    number, partition = batch["number"][0].as_py(), batch["partition"][0].as_py()
    yield pa.table({"note": [stage.keep(number, partial(work, number, partition))]})


def numbered(partitions: int) -> ray.data.Dataset:
    """A row with the `number` of each partition, which is a block of its own."""
    rows = [{"number": number} for number in range(partitions)]
    found: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=partitions)
    return found


def filled(table: pa.Table) -> pa.Table:
    """The table, with one row of nulls where it has none.

    Ray Data (2.60) loses the schema of a block without rows, and then fails to shuffle it.
    """
    return table if len(table) else pa.Table.from_pylist([{}], table.schema)


def clear(storage: Storage) -> None:
    """Remove what a preparation has kept, if anything. Raises OSError."""
    if storage.exists(STAGING):
        storage.delete(STAGING)
