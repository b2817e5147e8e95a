"""The part of a configuration that a fine-tuning has, and a pre-training has not."""

from typing import Literal

from pydantic import Field, field_validator

from panthalassa.config_values import Place, Positive, Rate, Section, Share

Projection = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]  # fmt: skip


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021): the model's own weights stay as they are."""

    rank: Positive = 16
    """Rows of A and columns of B in W + (alpha / rank) B A."""
    alpha: Rate = 32.0
    """Scales the update, by alpha / rank."""
    dropout: Share = 0.0
    """Share of an adapter's inputs that is left out in training, chosen anew in each step; the choice
    depends on the seed, the step and the sample, and not on the ranks."""
    targets: list[Projection] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        validate_default=True,
    )
    """The matrices of each block that get an adapter."""

    @field_validator("targets", mode="after")
    @classmethod
    def _each_once_in_any_order(cls, value: list[Projection]) -> list[Projection]:
        if len(set(value)) < len(value):
            raise ValueError("a matrix is named twice")
        return sorted(value)


class Finetune(Section):
    """Training that begins with a model and goes on with examples."""

    start: Place
    """The model that it begins with: a run (`runs/laptop`), or a folder in Hugging Face's layout."""
    objective: Literal["sft", "dpo"] = "sft"
    """What the examples are: answers to learn (supervised fine-tuning), or pairs of a chosen and a
    rejected answer (direct preference optimization, Rafailov et al. 2023)."""
    beta: Rate = 0.1
    """DPO: how much a departure from the start counts."""
    lora: Lora | None = None
    """Train adapters alone; without it all weights."""


def loss_unit(objective: object) -> str:
    """Of what a run's loss is a mean, in nats; without an objective it is pre-training."""
    return "pair" if objective == "dpo" else "token"
