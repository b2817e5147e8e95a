"""The part of a configuration that says what the model is."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from panthalassa.config_values import Positive, Rate, RopeScaling, Section

PRESETS = Path(__file__).parent / "model" / "presets.yaml"


class Vision(Section):
    """A vision transformer in the shape of SigLIP (Zhai et al. 2023), and a projector of two layers
    behind it, as in LLaVA-1.5 (Liu et al. 2023): an image becomes `tokens` positions of the decoder."""

    image_size: int = Field(gt=0, le=4096)
    """Height and width of an image in pixels; others are fitted into such a square and padded."""
    patch_size: Positive
    """Height and width of what becomes one position; divides image_size."""
    hidden_size: Positive
    """Width of the tower's residual stream; a multiple of heads."""
    layers: Positive
    """Blocks of attention and feed-forward in the tower."""
    heads: Positive
    """Heads in each of them."""
    ffn_size: Positive
    """Width inside the tower's feed-forward (two layers and GELU)."""
    norm_epsilon: Rate = 1e-6
    """Added to the variance in the tower's LayerNorm."""

    @property
    def tokens(self) -> int:
        """Positions of the decoder that an image takes."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _check(self) -> "Vision":
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}"
            )
        return self


class Model(Section):
    """A Llama-compatible decoder; `preset` fills in whatever is not given here."""

    preset: str | None = None
    """A shape of model/presets.yaml."""
    vocabulary_size: Positive
    """Rows of the embedding: at least the corpus's vocabulary."""
    hidden_size: Positive
    """Width of the residual stream."""
    layers: Positive
    """Blocks of attention and feed-forward."""
    heads: Positive
    """Query heads; a multiple of kv_heads."""
    kv_heads: Positive
    """Key and value heads, each shared by heads / kv_heads query heads."""
    head_size: int = Field(ge=2, multiple_of=2)
    """Width of a head."""
    ffn_size: Positive
    """Width inside the feed-forward (SwiGLU)."""
    tied_embeddings: bool = False
    """One matrix for the embedding and the output."""
    rope_theta: Rate = 10_000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched to more than the model was first trained on, or null."""
    norm_epsilon: Rate = 1e-5
    """Added to the mean square in RMSNorm."""
    vision: Vision | None = Field(default=None, exclude_if=lambda value: value is None)
    """What reads images, or null for a model of text alone."""

    def identity(self) -> dict[str, Any]:
        """What weights of this model depend on, by key."""
        return self.model_dump(exclude={"preset"})

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") is None:
            return data
        presets = yaml.safe_load(PRESETS.read_text())
        if str(data["preset"]) not in presets:
            nearest = difflib.get_close_matches(str(data["preset"]), presets, n=1)
            hint = f"did you mean {nearest[0]}? There are" if nearest else "there are"
            raise ValueError(f"no preset {data['preset']!r}; {hint} {', '.join(presets)}")
        shape = presets[data["preset"]]
        if isinstance(data.get("vision"), dict):
            data = {**data, "vision": {**shape.get("vision", {}), **data["vision"]}}
        return {**shape, **data}

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self
