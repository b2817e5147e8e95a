"""What reads images: the same function as in transformers, and where its features stand."""

from typing import Any

import pytest
import torch
from images import TOKENS, VISION, loss_of, mixed, seeing
from ranks import tiny, unsharded
from torch import Tensor, nn

from panthalassa.config_model import Model
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import ConfigError
from panthalassa.model.generate import generate_batch
from panthalassa.model.transformer import Transformer, count_parameters, initial_weight
from panthalassa.model.vision import put_in

THEIRS = {
    "embedding": "model.language_model.embed_tokens",
    "head.norm": "model.language_model.norm",
    "head.output": "lm_head",
    "vision.patches": "model.vision_tower.embeddings.patch_embedding",
    "vision.positions": "model.vision_tower.embeddings.position_embedding",
    "projector.in_proj": "model.multi_modal_projector.linear_1",
    "projector.out_proj": "model.multi_modal_projector.linear_2",
}
DECODER = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "ffn_norm": "post_attention_layernorm",
    "ffn": "mlp",
}
TOWER = {
    "attention_norm": "layer_norm1",
    "attention.o_proj": "self_attn.out_proj",
    "attention": "self_attn",
    "ffn_norm": "layer_norm2",
    "ffn.up_proj": "mlp.fc1",
    "ffn.down_proj": "mlp.fc2",
}


def image(seed: int, number: int = 1) -> Tensor:
    size = VISION["image_size"]
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, size, size, 3), generator=draw, dtype=torch.uint8)


def shown(*text: int, images: int = 1) -> list[int]:
    one = [Tokenizer.image_start, *[Tokenizer.image] * TOKENS, Tokenizer.image_end]
    return [Tokenizer.bos, *one * images, *text]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Weights so large that the model has opinions, also of images; no bias is zero."""
    model, draw = unsharded(seeing()), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith(("vision.", "projector.")):
                parameter.mul_(8)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=draw)
    return model


def their_name(ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    if module in THEIRS:
        return f"{THEIRS[module]}.{kind}"
    stack, _, rest = module.partition("blocks.")
    layer, _, part = rest.partition(".")
    table, place = (
        (TOWER, "model.vision_tower.encoder") if stack else (DECODER, "model.language_model")
    )
    for own in sorted(table, key=len, reverse=True):
        if part == own or part.startswith(f"{own}."):
            return f"{place}.layers.{layer}.{table[own]}{part.removeprefix(own)}.{kind}"
    raise KeyError(ours)


def as_llava(model: Transformer) -> Any:
    """The same model in transformers."""
    library, config, vision = (
        pytest.importorskip("transformers"),
        model.config,
        model.config.vision,
    )
    assert vision is not None
    theirs = library.LlavaForConditionalGeneration(
        library.LlavaConfig(
            vision_config=library.SiglipVisionConfig(
                hidden_size=vision.hidden_size,
                intermediate_size=vision.ffn_size,
                num_hidden_layers=vision.layers,
                num_attention_heads=vision.heads,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                layer_norm_eps=vision.norm_epsilon,
                vision_use_head=False,
            ),
            text_config=library.LlamaConfig(
                vocab_size=config.vocabulary_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.ffn_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                head_dim=config.head_size,
                rms_norm_eps=config.norm_epsilon,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            ),
            image_token_index=Tokenizer.image,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    ).eval()
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            there = weights.pop(their_name(name))
            there.copy_(parameter.view_as(there))
        for left in weights.values():  # of a norm whose output nobody reads
            left.normal_()
    assert set(weights) == {f"model.vision_tower.post_layernorm.{k}" for k in ("weight", "bias")}
    return theirs


def test_features_and_logits_are_those_of_transformers(model: Transformer) -> None:
    theirs, images, ids = as_llava(model), image(1, 3), shown(50, 51, 52, images=3)
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1
    assert model.vision is not None
    assert model.projector is not None
    with torch.no_grad():
        found = model.projector(model.vision(images))
        expected = torch.stack(list(theirs.get_image_features(pixels).pooler_output))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        tokens = torch.tensor([ids])
        logits = model(tokens, torch.zeros_like(tokens), images=images)
        their_logits = theirs(input_ids=tokens, pixel_values=pixels).logits
    assert found.std() > 0.1
    torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)


def test_features_stand_where_the_image_tokens_are_in_their_order() -> None:
    tokens = torch.tensor([[5, 13, 13, 6, 7], [7, 7, 7, 7, 7], [13, 13, 13, 13, 2]])
    x, features = torch.zeros(3, 5, 1), torch.arange(1.0, 7).view(3, 2, 1)
    found = put_in(x, tokens, features)[..., 0].tolist()
    assert found == [[0, 1, 2, 0, 0], [0] * 5, [3, 4, 5, 6, 0]]


def test_what_a_model_says_depends_on_each_image_behind_it_alone(model: Transformer) -> None:
    tokens = torch.tensor([shown(50, images=1) + shown(60, 61, images=1)])
    documents = torch.zeros_like(tokens)
    images = image(2, 2)
    with torch.no_grad():
        before = model(tokens, documents, images=images)[0]
        after = model(tokens, documents, images=torch.cat((images[:1], image(3))))[0]
    first = len(shown(50)) + 2
    assert torch.equal(before[:first], after[:first])
    assert (before[first:] - after[first:]).abs().amax(dim=1).min() > 1e-3


def test_the_decoder_starts_from_the_bits_of_one_that_reads_text_alone() -> None:
    both, text = (dict(unsharded(config).named_parameters()) for config in (seeing(), tiny()))
    assert text.keys() < both.keys()
    for name, weight in text.items():
        assert torch.equal(both[name], weight), name


def test_a_tower_starts_as_it_says() -> None:
    config = Model.model_validate({"preset": "laptop-vision"})
    assert config.vision is not None

    def std(name: str, *shape: int) -> float:
        size = torch.Size(shape)
        return initial_weight(name, size, config, 0, torch.device("cpu")).std().item()

    hidden, layers = config.vision.hidden_size, config.vision.layers
    flat, deep = hidden**-0.5, (2 * layers * hidden) ** -0.5
    for name in ("vision.positions", "vision.blocks.0.ffn.up_proj", "projector.in_proj"):
        assert std(f"{name}.weight", 400, hidden) == pytest.approx(flat, rel=0.05), name
    assert std("vision.patches.weight", 400, 4 * hidden) == pytest.approx(flat / 2, rel=0.05)
    out = "vision.blocks.0.attention.o_proj.weight"
    assert std(out, 400, hidden) == pytest.approx(deep, rel=0.05)
    vision = config.vision.model_copy(update={"layers": 4 * layers})
    deeper = config.model_copy(update={"vision": vision})
    name, size, cpu = "ffn.down_proj.weight", torch.Size((400, hidden)), torch.device("cpu")
    tower = initial_weight(f"vision.blocks.0.{name}", size, deeper, 0, cpu)
    assert tower.std().item() == pytest.approx(deep / 2, rel=0.05)
    decoder = (initial_weight(f"blocks.0.{name}", size, c, 0, cpu) for c in (config, deeper))
    assert torch.equal(*decoder)
    fresh = unsharded(seeing()).vision
    assert fresh is not None
    norms = [module for module in fresh.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * VISION["layers"]
    assert all((norm.weight == 1).all() for norm in norms)
    assert not any(p.any() for name, p in fresh.named_parameters() if name.endswith("bias"))


def test_the_laptops_tower_has_a_million_parameters() -> None:
    with torch.device("meta"):
        whole = Transformer(Model.model_validate({"preset": "laptop-vision"}))
    assert whole.vision is not None
    assert whole.projector is not None
    assert whole.config.vision is not None
    assert whole.config.vision.tokens == 16
    seeing_part = count_parameters(whole.vision) + count_parameters(whole.projector)
    assert 0.9e6 < seeing_part < 1.1e6


def test_prompts_with_images_are_continued_as_a_model_without_a_cache_does(
    model: Transformer,
) -> None:
    prompts = [shown(50, images=2), [Tokenizer.bos, 60, 61], shown(70, 71, 72), shown(50, images=2)]
    images = [image(1, 2), image(0, 0), image(3), image(4, 2)]
    expected = []
    for prompt, own in zip(prompts, images, strict=True):
        ids = list(prompt)
        for _ in range(8):
            tokens = torch.tensor([ids])
            with torch.no_grad():
                ids.append(int(model(tokens, torch.zeros_like(tokens), images=own)[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert expected[0] != expected[3], "the same words about other images"
    for batch in (1, 3, 4):
        assert generate_batch(model, prompts, 8, batch=batch, images=images) == expected


def test_images_that_do_not_fit_their_prompt_are_refused(model: Transformer) -> None:
    for prompt, images in ((shown(5), image(1, 2)), (shown(5), image(1, 0)), ([1, 5], image(1))):
        with pytest.raises(ConfigError, match=r"prompt 1 has .* tokens of images and"):
            generate_batch(model, [[1, 5], prompt], 2, images=[image(1, 0), images])
    with pytest.raises(ConfigError, match="prompt 0 has 1 images, and the model reads text alone"):
        generate_batch(unsharded(tiny()), [shown(5)], 2, images=[image(1)])


def test_a_batch_of_text_has_no_gradient_for_the_tower_but_zero() -> None:
    model = unsharded(seeing())
    loss_of(model, mixed(2, seeing())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != name.startswith(("vision", "projector")), name
