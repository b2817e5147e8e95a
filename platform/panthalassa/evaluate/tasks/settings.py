"""What every task over files is made of: where they are, and how many items of each group are taken."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated

from pydantic import ConfigDict, Field, SkipValidation
from pydantic.dataclasses import dataclass

from panthalassa.evaluate.task import Item, Task
from panthalassa.evaluate.tasks.reading import limited
from panthalassa.storage import Storage

CHECKED = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
"""Of the tasks' fields, which are settings."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FileTask(Task):
    """A task over the files at `data`."""

    data: SkipValidation[Storage]
    limit: Annotated[int, Field(gt=0)] | None = None
    """Items of each group that are taken, the first ones."""

    def items(self) -> Iterator[Item]:
        return limited(self.data, self.read(), self.limit)

    @abstractmethod
    def read(self) -> Iterator[Item]:
        """All items of the files."""
