"""The Llama layout of Hugging Face: what our weights and our shape are called there, and back.

A model is the same function in both. Rotary positions turn the two halves of a head against each other
here and there (Meta's own files turn neighbours, and Hugging Face has permuted their rows), and all
matrices are stored [out, in]. So a weight changes its name, and not one byte. What the layout can say
and this model is not (biases, other activations, other rotary scalings) is refused by the field that
says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from panthalassa.config_model import Model
from panthalassa.errors import ConfigError
from panthalassa.model.transformer import INITIAL_STD

FIXED: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
"""Fields that have one value for every model of ours. One that a file leaves out has it, too."""
ABSENT: dict[str, Any] = {
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}
"""Fields that other models of the family have, and the value that changes nothing."""
SHAPE = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "ffn_size": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
}
"""Theirs by ours."""
ROPE = {
    "factor": "factor",
    "low_turns": "low_freq_factor",
    "high_turns": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}
OUTPUT = "lm_head.weight"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] | trim) + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The format of `finetune.chat` in Jinja."""
IN_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
}


@dataclass(frozen=True)
class Parameter:
    """A weight: its name in `Transformer`, in the Llama layout, and its shape in both."""

    ours: str
    theirs: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Delimiters:
    """The ids of the tokens around a document."""

    bos: int | None
    eos: int
    pad: int


def parameters(model: Model) -> Iterator[Parameter]:
    """All weights of a model, in the order in which it uses them; a tied one once."""
    hidden, width, kv_width = (
        model.hidden_size,
        model.heads * model.head_size,
        model.kv_heads * model.head_size,
    )
    shapes = {
        "attention.q_proj": (width, hidden),
        "attention.k_proj": (kv_width, hidden),
        "attention.v_proj": (kv_width, hidden),
        "attention.o_proj": (hidden, width),
        "ffn.gate_proj": (model.ffn_size, hidden),
        "ffn.up_proj": (model.ffn_size, hidden),
        "ffn.down_proj": (hidden, model.ffn_size),
    }
    matrix = (model.vocabulary_size, hidden)
    yield Parameter("embedding.weight", "model.embed_tokens.weight", matrix)
    for layer in range(model.layers):
        for ours, theirs in IN_BLOCK.items():
            yield Parameter(
                f"blocks.{layer}.{ours}.weight",
                f"model.layers.{layer}.{theirs}.weight",
                shapes.get(ours, (hidden,)),
            )
    yield Parameter("head.norm.weight", "model.norm.weight", (hidden,))
    if not model.tied_embeddings:
        yield Parameter("head.output.weight", OUTPUT, matrix)


def may_be_left_out(name: str, model: Model) -> bool:
    """Whether a tensor of a file says nothing of its own: a second copy of a tied matrix, or rotary
    frequencies, which old files hold and `config.json` tells."""
    return (name == OUTPUT and model.tied_embeddings) or name.endswith(".rotary_emb.inv_freq")


def to_llama(
    model: Model, length: int, dtype: str, delimiters: Delimiters | None
) -> dict[str, Any]:
    """The content of config.json. length: tokens of the longest text; dtype: torch's name of it.

    Raises ConfigError for a shape that the layout does not have.
    """
    if model.hidden_size % model.heads:
        raise ConfigError(
            f"model.hidden_size={model.hidden_size} is no multiple of model.heads={model.heads}, which "
            "the Llama layout of Hugging Face asks for: such a model can not be exported."
        )
    scaling = None
    if model.rope_scaling:
        theirs = {ROPE[key]: value for key, value in model.rope_scaling.model_dump().items()}
        scaling = {"rope_type": "llama3", **theirs}
    return {
        **FIXED,
        **{theirs: getattr(model, ours) for ours, theirs in SHAPE.items()},
        "tie_word_embeddings": model.tied_embeddings,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": length,
        "initializer_range": INITIAL_STD,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
        **_ids(delimiters),
    }


def from_llama(content: Mapping[str, Any], place: str) -> Model:
    """The model of a config.json; `place` is what errors call it.

    Fields that are absent have the defaults of Hugging Face's LlamaConfig, but for the sizes, which must
    be there. Raises ConfigError for another architecture, with the field that differs.
    """
    for field, expected in {**FIXED, **ABSENT}.items():
        if field == "model_type" or content.get(field) is not None:
            _expect(place, field, content.get(field), expected)
    try:
        given = {ours: content.get(theirs) for ours, theirs in SHAPE.items()}
        given["kv_heads"] = given["kv_heads"] or content["num_attention_heads"]
        given["head_size"] = (
            given["head_size"] or content["hidden_size"] // content["num_attention_heads"]
        )
        given["norm_epsilon"] = given["norm_epsilon"] or 1e-6
        missing = [SHAPE[ours] for ours, value in given.items() if value is None]
        if missing:
            raise KeyError(*missing)
        rope = dict(content.get("rope_scaling") or content.get("rope_parameters") or {})
        theta = (content.get("rope_parameters") or {}).get("rope_theta")
        return Model.model_validate(
            {
                **given,
                "tied_embeddings": content.get("tie_word_embeddings", False),
                "rope_theta": rope.get("rope_theta")
                or theta
                or content.get("rope_theta", 10_000.0),
                "rope_scaling": _scaling(rope, place),
            }
        )
    except KeyError as error:
        raise ConfigError(f"{place}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        known = {**SHAPE, "rope_scaling": "rope_scaling", "tied_embeddings": "tie_word_embeddings"}
        if not isinstance(error, ValidationError):
            raise ConfigError(f"{place} is no configuration of a model: {error}") from error
        first = error.errors()[0]
        field = ".".join(known.get(str(part), str(part)) for part in first["loc"])
        found = f"{field} is {first['input']!r}: " if field else ""
        raise ConfigError(f"{place}: {found}{first['msg']}") from error


def _scaling(rope: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    _expect(place, "rope_scaling.partial_rotary_factor", rope.get("partial_rotary_factor", 1), 1)
    if kind == "default":
        return None
    _expect(place, "rope_scaling.rope_type", kind, "llama3")
    try:
        return {ours: rope[theirs] for ours, theirs in ROPE.items()}
    except KeyError as error:
        raise ConfigError(f"{place}: rope_scaling.{error.args[0]} is missing") from error


def _expect(place: str, field: str, found: object, expected: object) -> None:
    if found != expected:
        raise ConfigError(
            f"{place}: {field} is {found!r}, and only {expected!r} is supported: the model is a Llama "
            "without biases."
        )


def generation_config(delimiters: Delimiters, ends: Sequence[int]) -> dict[str, Any]:
    """The content of generation_config.json. ends: the ids of which one ends a text, that of a document
    or that of a turn of a chat."""
    return {"do_sample": False, **_ids(delimiters), "eos_token_id": list(ends)}


def tokenizer_config(bos: str, eos: str, pad: str, length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json, beside a tokenizer.json: texts come back as they are."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }


def _ids(delimiters: Delimiters | None) -> dict[str, int | None]:
    if delimiters is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "bos_token_id": delimiters.bos,
        "eos_token_id": delimiters.eos,
        "pad_token_id": delimiters.pad,
    }
