"""The section `sweep` of a configuration: what is searched, how, and what counts as best.

A file that has it is otherwise the whole configuration of a run (`space` reads it). Its `run.name` is
the sweep's: the same name goes on where the sweep was.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from panthalassa.config import Config
from panthalassa.config_values import Positive, Rate, Section

Objective = Literal["loss", "tokens_per_second", "j_per_token"]
"""Held-out loss, speed and energy: the first and the last are best when low."""

Scalar = Annotated[
    Annotated[int, Tag("(whole)")]
    | Annotated[float, Field(allow_inf_nan=False), Tag("(fraction)")],
    Discriminator(lambda value: "(whole)" if isinstance(value, int) else "(fraction)"),
]


class Range(Section):
    low: Scalar
    """The least value."""
    high: Scalar
    """The greatest value; whole numbers at both ends mean whole numbers in between."""
    log: bool = False
    """Draw the logarithm evenly, instead of the value."""

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} has no logarithm; give log: false")
        return self


def _kind(values: object) -> str:
    return "(range)" if isinstance(values, dict | Range) else "(values)"


Domain = Annotated[
    Annotated[list[Any], Tag("(values)")] | Annotated[Range, Tag("(range)")], Discriminator(_kind)
]


class Sweep(Section):
    space: dict[str, Domain] = Field(min_length=1)
    """What is searched: dotted keys of the configuration, each with a list of values or a range."""
    search: Literal["random", "grid", "tpe", "pbt"] = "random"
    """Draw at random, try each combination of the lists, have Optuna's TPE learn from trials that are
    over, or train a population whose worst give way to branches of the best (PBT)."""
    trials: Positive | None = None
    """How many, or the size of PBT's population; a grid has as many as it has combinations."""
    objective: list[Objective] = Field(default=["loss"], min_length=1, max_length=2)
    """What is best; with two, the front of the trials that none beats in both."""
    within: float | None = Field(default=None, gt=0, lt=1)
    """Choose, of the trials whose loss is at most this share above the best, the one that took the
    fewest joules."""
    asha: bool = False
    """Stop trials that are behind the others at an evaluation (asynchronous successive halving)."""
    reduction: float = Field(default=3.0, gt=1, allow_inf_nan=False)
    """ASHA lets one of so many trials pass an evaluation, and evaluates again after so many times the
    steps."""
    concurrent: Positive | None = None
    """Trials at a time; as many as have room if not given."""
    silent_seconds: Rate = 3600.0
    """Seconds without a step, its start included, after which a trial counts as hung and is given up."""

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("space")
    @classmethod
    def _no_empty_lists(cls, space: dict[str, Any]) -> dict[str, Any]:
        if empty := [key for key, values in space.items() if values == []]:
            raise ValueError(f"{', '.join(empty)}: give at least one value")
        return space

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        if problems := list(self._impossible()):
            raise ValueError("\n".join(problems))
        return self

    def _impossible(self) -> Iterator[str]:
        ranges = [key for key, values in self.space.items() if isinstance(values, Range)]
        if self.search == "grid" and ranges:
            yield f"search=grid needs lists, and {', '.join(ranges)} is a range: list its values"
        if self.search == "grid" and self.trials:
            yield "search=grid has as many trials as combinations: leave trials out, or take random"
        if self.search != "grid" and not self.trials:
            yield f"search={self.search} needs trials, the number of them"
        if self.search == "pbt" and self.asha:
            yield "search=pbt replaces trials by itself: set asha=false"
        if self.search == "pbt" and (self.trials or 2) < 2:
            yield "search=pbt needs a population of two trials or more"
        if len(self.objective) > 1 and (self.asha or self.search == "pbt"):
            yield "asha and search=pbt rank trials by one objective: give one, or asha=false"
        if len(set(self.objective)) < len(self.objective):
            yield f"objective={self.objective} names one twice"
        if self.within and self.objective != ["loss"]:
            yield "within belongs to objective=loss"
        if self.within and self.search == "pbt":
            yield "within compares energies, and a branch of search=pbt has only a part of its own"
        for key in self.space:
            if below := [other for other in self.space if other.startswith(f"{key}.")]:
                yield f"space has {key} and {', '.join(below)} below it: name each key once"


class SweptConfig(Config):
    sweep: Sweep
