"""What a model is asked: in an evaluation, and beside a training."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from panthalassa.config_values import Place, Positive, Section

PREFIX = "harness:"


def _settings_alone(settings: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(settings.keys() & {"name", "data", "limit", "part"}):
        raise ValueError(
            f"{taken[0]} is no setting of a task: name, data and limit stand beside settings"
        )
    return settings


class Asked(Section):
    name: Annotated[str, Field(pattern=r"^(harness:)?[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """A task of this package, or `harness:` and one of the LM Evaluation Harness."""
    data: Place
    """The folder or s3:// URI of its files; for the harness one with `train`, `validation` and `test`
    as .jsonl or .parquet, local."""
    limit: Positive | None = None
    """Items, the first of the task; all if not given."""
    settings: Annotated[dict[str, Any], AfterValidator(_settings_alone)] = Field(default={})
    """What the task itself can be told; for the harness `num_fewshot`."""

    @property
    def of_harness(self) -> bool:
        return self.name.startswith(PREFIX)


def _each_once(tasks: list[Asked]) -> list[Asked]:
    again = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if again:
        raise ValueError(f"{again[0]} is there twice: results are told by the task's name")
    return tasks


Tasks = Annotated[list[Asked], Field(min_length=1), AfterValidator(_each_once)]


class Beside(Section):
    tasks: Tasks
    """What checkpoints are asked while the training goes on, as in `panthalassa evaluate`."""
    every: Positive = 1
    """Of so many checkpoints one is asked; while one is, the newest waits and those before it do not."""
    cpus: float = Field(default=0.5, gt=0, multiple_of=0.25)
    """That Ray reserves for it, beside those of the ranks."""
    gpus: Literal[0, 1] = 0
    """That it computes on, beside those of the ranks; with 0 on the CPU."""
    batch_tokens: Positive = 4096
    """That it reads at a time, with padding."""
    wait_seconds: float = Field(default=600.0, ge=0, allow_inf_nan=False)
    """For which a run that has ended waits for its last evaluation."""
