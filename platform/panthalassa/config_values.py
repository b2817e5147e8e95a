"""What the values in a configuration may be, and what all its sections have in common."""

import os
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
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


LocalFolder = Annotated[Place, AfterValidator(_on_each_node)]
Weights = dict[
    Annotated[str, BeforeValidator(_quoted)], Annotated[float, Field(ge=0, allow_inf_nan=False)]
]
Share = Annotated[float, Field(ge=0, lt=1)]
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
