"""What the values in a configuration may be, and what all its sections have in common."""

import math
import os
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Place = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")]
Positive = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=2, le=2**20)]


def _quoted(name: object) -> object:
    if isinstance(name, bool):
        raise ValueError("YAML takes no, yes, on and off for truth values: quote the name")
    return name


def _on_each_node(folder: str) -> str:
    if "://" in folder:
        raise ValueError("expected a local folder of each node")
    if os.path.expanduser(folder).startswith("~"):
        raise ValueError("there is no such user, or no HOME")
    return folder


def number_or_name(value: Any) -> float | str:
    """A number greater than 0, or a text. Raises ValueError."""
    try:
        # YAML takes 312e12 for a text, and yes for true
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
        if isinstance(value, str) and value:
            return value
    if not 0 < number < math.inf:
        raise ValueError("expected FLOP/s greater than 0, a GPU's name, or auto")
    return number


LocalFolder = Annotated[Place, AfterValidator(_on_each_node)]
Weights = dict[
    Annotated[str, BeforeValidator(_quoted)], Annotated[float, Field(ge=0, allow_inf_nan=False)]
]
Share = Annotated[float, Field(ge=0, lt=1)]
WholeShare = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which pydantic would take for 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("expected a number or a text, not true or false")
        return value


class RopeScaling(Section):
    """Rotary frequencies of Llama 3.1 and later: slow ones are divided by `factor`, fast ones stay.

    What is slow and what is fast is told by how often a frequency turns in `original_length` positions.
    """

    factor: float = Field(ge=1, allow_inf_nan=False)
    """By which frequencies are divided that turn less than low_turns times."""
    low_turns: Rate = 1.0
    """Llama's `low_freq_factor`."""
    high_turns: Rate = 4.0
    """Llama's `high_freq_factor`: a frequency stays that turns more often than this; those in between
    are blended."""
    original_length: Positive = 8192
    """Llama's `original_max_position_embeddings`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low_turns >= self.high_turns:
            raise ValueError(
                f"low_turns={self.low_turns} is not below high_turns={self.high_turns}"
            )
        return self
