"""The LLaVA layout of Hugging Face, for models that read images; any other has that of Llama.

A model is the same function in both. The tower is a `siglip_vision_model`, the projector two layers with
GELU, and the decoder reads the features of the tower's last block, of all patches. A weight changes its
name, and that of the patches its shape, for it is a convolution there; no byte is changed. The norm
behind the last block, which belongs to a pooling that nothing reads, has no weights here: it is written
as one that changes nothing. What the layout can say and this model is not (other towers, other layers,
resolutions in pieces) is refused by the field that says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from panthalassa.config_model import Model, Vision
from panthalassa.corpus.tokenizer import IMAGES, Tokenizer
from panthalassa.errors import ConfigError
from panthalassa.model import hugging_face
from panthalassa.model.hugging_face import OUTPUT, Delimiters, from_llama, to_llama
from panthalassa.model.vision import CHANNELS

MODEL_TYPE = "llava"
FIXED: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": Tokenizer.image,
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
"""Fields of a model that have one value for every model of ours."""
FIXED_OF_TOWER: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "num_channels": CHANNELS,
    "vision_use_head": False,
}
"""Those of its tower."""
SHAPE = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
    "norm_epsilon": "layer_norm_eps",
}
"""The tower's fields there, by ours."""
TOWER = "vision_tower."
DECODER = "language_model."
PATCHES = "vision.patches.weight"
PROJECTOR = {
    "projector.in_proj": "multi_modal_projector.linear_1",
    "projector.out_proj": "multi_modal_projector.linear_2",
}
IN_BLOCK = {
    "attention_norm": "layer_norm1",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj",
    "ffn_norm": "layer_norm2",
    "ffn.up_proj": "mlp.fc1",
    "ffn.down_proj": "mlp.fc2",
}
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"


@dataclass(frozen=True)
class Parameter(hugging_face.Parameter):
    """A weight, which may have another shape there, of the same numbers in the same order."""

    their_shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A tensor that the layout has and nothing depends on: its name there, shape and value."""

    name: str
    shape: tuple[int, ...]
    value: float


def parameters(model: Model) -> Iterator[Parameter]:
    """All weights of a model, in the order in which it uses them; a tied one once."""
    if model.vision:
        yield from _tower(model.vision)
        yield from _projector(model, model.vision)
    before = DECODER if model.vision else ""
    for found in hugging_face.parameters(model):
        yield Parameter(found.ours, before + found.theirs, found.shape, found.shape)


def constants(model: Model) -> Iterator[Constant]:
    """What files of a model hold besides."""
    if model.vision:
        shape = (model.vision.hidden_size,)
        yield Constant(f"{TOWER}post_layernorm.weight", shape, 1.0)
        yield Constant(f"{TOWER}post_layernorm.bias", shape, 0.0)


def may_be_left_out(name: str, model: Model) -> bool:
    """Whether a tensor of a file says nothing of its own."""
    if not model.vision:
        return hugging_face.may_be_left_out(name, model)
    if name in (constant.name for constant in constants(model)):
        return True
    return name == DECODER + OUTPUT and model.tied_embeddings


def _tower(vision: Vision) -> Iterator[Parameter]:
    hidden, patch = vision.hidden_size, vision.patch_size
    there = f"{TOWER}embeddings."
    yield Parameter(
        PATCHES,
        f"{there}patch_embedding.weight",
        (hidden, CHANNELS * patch**2),
        (hidden, CHANNELS, patch, patch),
    )
    yield _same("vision.patches.bias", f"{there}patch_embedding.bias", hidden)
    yield _same(
        "vision.positions.weight", f"{there}position_embedding.weight", vision.tokens, hidden
    )
    shapes = {
        "ffn.up_proj": (vision.ffn_size, hidden),
        "ffn.down_proj": (hidden, vision.ffn_size),
    }
    for layer in range(vision.layers):
        for ours, theirs in IN_BLOCK.items():
            here, there = f"vision.blocks.{layer}.{ours}", f"{TOWER}encoder.layers.{layer}.{theirs}"
            shape = (hidden,) if ours.endswith("norm") else shapes.get(ours, (hidden, hidden))
            yield _same(f"{here}.weight", f"{there}.weight", *shape)
            yield _same(f"{here}.bias", f"{there}.bias", shape[0])


def _projector(model: Model, vision: Vision) -> Iterator[Parameter]:
    width = vision.hidden_size
    for ours, theirs in PROJECTOR.items():
        yield _same(f"{ours}.weight", f"{theirs}.weight", model.hidden_size, width)
        yield _same(f"{ours}.bias", f"{theirs}.bias", model.hidden_size)
        width = model.hidden_size


def _same(ours: str, theirs: str, *shape: int) -> Parameter:
    return Parameter(ours, theirs, shape, shape)


def to_config(
    model: Model, length: int, dtype: str, delimiters: Delimiters | None
) -> dict[str, Any]:
    """The content of config.json, as in `to_llama`."""
    text = to_llama(model, length, dtype, delimiters)
    if not model.vision:
        return text
    return {
        **FIXED,
        "text_config": text,
        "vision_config": {
            **FIXED_OF_TOWER,
            **{theirs: getattr(model.vision, ours) for ours, theirs in SHAPE.items()},
            "attention_dropout": 0.0,
        },
        "image_seq_length": model.vision.tokens,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": dtype,
        **{key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def from_config(content: Mapping[str, Any], place: str) -> Model:
    """The model of a config.json, of either layout; `place` is what errors call it. Raises ConfigError
    for another architecture, with the field that differs."""
    if content.get("model_type") != MODEL_TYPE:
        return from_llama(content, place)
    if "image_token_id" in content:  # another name of it
        content = {"image_token_index": content["image_token_id"], **content}
    _expect(place, "", content, FIXED)
    tower = _section(place, content, "vision_config")
    _expect(place, "vision_config.", tower, FIXED_OF_TOWER)
    text = dict(_section(place, content, "text_config"))
    if content.get("tie_word_embeddings"):
        text["tie_word_embeddings"] = True
    model = from_llama(text, f"{place}: text_config")
    if missing := [theirs for theirs in SHAPE.values() if tower.get(theirs) is None]:
        raise ConfigError(f"{place}: vision_config.{missing[0]} is missing")
    try:
        vision = Vision.model_validate({ours: tower[theirs] for ours, theirs in SHAPE.items()})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(SHAPE.get(str(part), str(part)) for part in first["loc"])
        found = f".{field} is {first['input']!r}" if field else ""
        raise ConfigError(f"{place}: vision_config{found}: {first['msg']}") from error
    return model.model_copy(update={"vision": vision})


def text_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's part of a config.json."""
    found: Mapping[str, Any] = content.get("text_config", content)
    return found


def _section(place: str, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    if not isinstance(found, dict):
        raise ConfigError(f"{place}: {name} is missing")
    return found


def _expect(place: str, before: str, content: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for field, expected in fixed.items():
        found = content.get(field)
        if found != expected and not (field == "architectures" and found is None):
            raise ConfigError(
                f"{place}: {before}{field} is {found!r}, and only {expected!r} is supported: images are "
                "read by a SigLIP tower, all patches of its last block, and a projector with GELU."
            )


def preprocessor_config(vision: Vision) -> dict[str, Any]:
    """The content of PREPROCESSOR. It stretches an image to the square; here it is fitted into it with
    its aspect ratio, and padded with white (`corpus.images`): both agree on squares."""
    side = vision.image_size
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 1,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * CHANNELS,
        "image_std": [0.5] * CHANNELS,
    }


def processor_config(vision: Vision) -> dict[str, Any]:
    """The content of PROCESSOR: in a text, an image is the three tokens of `corpus.tokenizer.IMAGES`, of
    which the processor repeats the middle one."""
    _, _, image = IMAGES
    return {
        "processor_class": "LlavaProcessor",
        "image_token": image,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": FIXED["vision_feature_select_strategy"],
        "num_additional_image_tokens": 0,
    }
