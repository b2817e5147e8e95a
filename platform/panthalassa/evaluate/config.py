"""The configuration of an evaluation: which model, what it is asked, where the results go, on what.

It is read as that of a run is: YAML and dotted overrides, each wrong key named.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from panthalassa.config import Cluster
from panthalassa.config_file import build, read
from panthalassa.config_values import LocalFolder, Place, Positive, Section
from panthalassa.storage import open_storage

PREFIX = "harness:"


class Asked(Section):
    name: Annotated[str, Field(pattern=r"^(harness:)?[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """A task of this package, or `harness:` and one of the LM Evaluation Harness."""
    data: Place
    """The folder or s3:// URI of its files; for the harness one with `train`, `validation` and `test`
    as .jsonl or .parquet, local."""
    limit: Positive | None = None
    """Items, the first of the task; all if not given."""
    settings: dict[str, Any] = Field(default={})
    """What the task itself can be told; for the harness `num_fewshot`."""

    @property
    def of_harness(self) -> bool:
        return self.name.startswith(PREFIX)


class Evaluation(Section):
    model: Place
    """A run, of which the newest good checkpoint is taken, or an exported folder."""
    output: Place
    """The folder or s3:// URI of the results, one for each evaluation; the same goes on where it was."""
    tasks: list[Asked] = Field(min_length=1)
    """What is asked of the model, each by its own name."""
    chat: bool = False
    """Whether contexts and prompts are put as what a user says in a chat, which tuned models expect."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights; logarithms are taken in fp32."""
    batch_tokens: Positive = 4096
    """That a worker reads at a time, with padding; a longer text is read alone."""
    length: Annotated[int, Field(ge=2)] | None = None
    """Tokens that are read at most: longer contexts are cut on the left, longer texts read in windows.
    As many as the model was trained on if not given."""
    staging: LocalFolder | None = None
    """A local folder of each node for files on their way from object storage; else the system's."""
    cluster: Cluster = Cluster()
    """`workers` answer side by side; each holds the whole model."""

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: list[Asked]) -> list[Asked]:
        again = [name for name, count in Counter(task.name for task in value).items() if count > 1]
        if again:
            raise ValueError(f"{again[0]} is there twice: results are told by the task's name")
        return value


def load(path: Path, overrides: list[str]) -> Evaluation:
    """Raises ConfigError with every mistake at once."""
    return build(read(path), overrides, str(path), Evaluation)


def places(config: Evaluation) -> dict[str, str]:
    """All folders of an evaluation, by key."""
    data = {f"tasks: the data of {entry.name}": entry.data for entry in config.tasks}
    return {"model": config.model, "output": config.output, **data}


def anchored(config: Evaluation) -> dict[str, object]:
    """Overrides by which its folders are the same in any other directory of this machine."""
    entries = [
        entry.model_dump(mode="json") | {"data": open_storage(entry.data).uri}
        for entry in config.tasks
    ]
    model, output = (open_storage(place).uri for place in (config.model, config.output))
    return {"model": model, "output": output, "tasks": entries}
