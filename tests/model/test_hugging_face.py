"""Our shapes and weights are a Llama model in transformers, and are read back as they were."""

import json

import pytest
import torch
from llama import differ, transformers
from ranks import tiny, unsharded

from panthalassa.errors import ConfigError
from panthalassa.model.hugging_face import Delimiters, from_llama, parameters, to_llama

SCALED = "{factor: 4.0, low_turns: 1.5, high_turns: 5.0, original_length: 24}"


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.tied_embeddings=true",),
        ("model.kv_heads=1", "model.head_size=16", "model.norm_epsilon=1e-3"),
        ("model.kv_heads=4", "model.rope_theta=1000.0", f"model.rope_scaling={SCALED}"),
    ],
)
def test_our_weights_say_the_same_in_transformers(overrides: tuple[str, ...]) -> None:
    config = tiny("run.seed=3", *overrides)
    ours = unsharded(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    content = json.loads(json.dumps(to_llama(config.model, 96, "float32", Delimiters(0, 1, 2))))
    assert from_llama(content, "here") == config.model
    library, weights = transformers(), ours.state_dict()
    theirs = library.LlamaForCausalLM(library.LlamaConfig(**content)).eval()
    assert theirs.config.eos_token_id == 1
    named = {parameter.theirs: weights[parameter.ours] for parameter in parameters(config.model)}
    missing, unexpected = theirs.load_state_dict(named, strict=False)
    assert missing == (["lm_head.weight"] if config.model.tied_embeddings else [])
    assert unexpected == []
    theirs.tie_weights()
    assert differ(ours, theirs, length=96) < 1e-4


def test_scaling_changes_what_a_model_says() -> None:
    plain, scaled = unsharded(tiny()), unsharded(tiny(f"model.rope_scaling={SCALED}"))
    ids = torch.arange(60)[None]
    with torch.no_grad():
        difference = plain(ids, ids * 0) - scaled(ids, ids * 0)
    assert difference[0, 0].abs().max() == 0
    assert difference[0, -1].abs().max() > 1e-5


def test_a_shape_that_the_layout_does_not_have_is_refused() -> None:
    model = tiny("model.heads=6", "model.kv_heads=3").model
    with pytest.raises(ConfigError, match=r"hidden_size=32 is no multiple of model\.heads=6"):
        to_llama(model, 96, "float32", None)
