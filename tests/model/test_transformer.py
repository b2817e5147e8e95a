"""The network: what it looks at, what it counts, and what it starts from."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ranks import mean_loss, packed, tiny, unsharded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from panthalassa.config import Config
from panthalassa.config_model import Model
from panthalassa.model.transformer import (
    IGNORED,
    Transformer,
    count_parameters,
    initial_weight,
    parameters_by_name,
    rotary_table,
    rotate,
)
from panthalassa.stream.reader import PADDING, Samples
from panthalassa.train.micro_batch import micro_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A model whose layers matter: with larger weights than those that training starts from."""
    model = unsharded(tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def drawn(length: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed))


def row(*parts: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and documents [1, sequence] of documents with the given indices."""
    tokens = torch.cat([tokens for _, tokens in parts])
    documents = torch.cat([torch.full_like(tokens, index) for index, tokens in parts])
    return tokens[None], documents[None]


def logits(model: Transformer, *parts: tuple[int, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(*row(*parts))[0]


def test_the_flagship_has_the_parameters_of_its_name() -> None:
    with torch.device("meta"):
        flagship = Transformer(Model.model_validate({"preset": "panthalassa-12b"}))
    count = count_parameters(flagship)
    assert 12.25e9 < count < 12.35e9
    assert count == 12_291_915_776
    assert flagship.vision
    assert flagship.projector
    assert count_parameters(flagship.vision) == 303_686_656
    assert count_parameters(flagship.projector) == 31_467_520


def test_without_a_tower_and_with_a_wider_feed_forward_the_flagship_counts_as_much() -> None:
    text_alone = {"preset": "panthalassa-12b", "vision": None, "ffn_size": 13312}
    with torch.device("meta"):
        found = count_parameters(Transformer(Model.model_validate(text_alone)))
    assert found == 12_310_656_000


def test_tied_embeddings_are_counted_once() -> None:
    tied, untied = (unsharded(tiny(f"model.tied_embeddings={tied}")) for tied in ("true", "false"))
    assert count_parameters(untied) - count_parameters(tied) == 256 * 32


def test_a_document_does_not_see_the_others_of_its_row(model: Transformer) -> None:
    before, document, behind = drawn(9, 1), drawn(13, 2), drawn(10, 3)
    first = logits(model, (0, before), (1, document), (2, behind))
    second = logits(model, (0, drawn(9, 4)), (1, document), (2, drawn(10, 5)))
    torch.testing.assert_close(first[9:22], second[9:22], atol=1e-5, rtol=0)
    assert (first[:9] - second[:9]).abs().max() > 0.1
    # The same tokens as one document do see each other: the comparison is able to fail.
    joined = logits(model, (0, before), (0, document), (0, behind))
    assert (first[9:22] - joined[9:22]).abs().max() > 0.1


def test_a_packed_document_is_worth_what_it_is_alone(model: Transformer) -> None:
    first, second = drawn(12, 1), drawn(20, 2)
    packed_logits = logits(model, (0, first), (1, second))
    torch.testing.assert_close(packed_logits[:12], logits(model, (0, first)), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed_logits[12:], logits(model, (0, second)), atol=1e-5, rtol=0)

    def loss(*parts: tuple[int, Tensor]) -> float:
        arrays = (part.numpy().astype(np.int32) for part in row(*parts))
        (batch,) = micro_batches(Samples.of_text(*arrays), 1, 1, CPU)
        with torch.no_grad():
            return model(batch.tokens, batch.documents, batch.labels).item()

    together = loss((0, first), (1, second))
    assert together == pytest.approx(loss((0, first)) + loss((0, second)), abs=1e-4)


def test_no_position_sees_a_later_one(model: Transformer) -> None:
    tokens = drawn(32, 1)
    base = logits(model, (0, tokens))
    for position in (1, 16, 31):
        changed = tokens.clone()
        changed[position] = (changed[position] + 1) % 256
        other = logits(model, (0, changed))
        assert torch.equal(other[:position], base[:position])
        assert (other[position:] - base[position:]).abs().amax(dim=1).min() > 1e-4


def test_the_order_of_earlier_tokens_matters() -> None:
    # In one layer without positions, attention would take them as a set.
    model, tokens = unsharded(tiny("model.layers=1")), drawn(10, 1)
    swapped = tokens[[5, 1, 2, 3, 4, 0, 6, 7, 8, 9]]
    difference = logits(model, (0, tokens))[-1] - logits(model, (0, swapped))[-1]
    assert difference.abs().max() > 1e-4


def batch_of(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    samples = packed(0, config)
    (batch,) = micro_batches(samples, 1, len(samples), CPU)
    return batch.tokens, batch.documents, batch.labels


@pytest.mark.parametrize("tied", ["false", "true"])
@pytest.mark.parametrize("chunk", [1, 24, 128])
def test_a_loss_in_pieces_is_the_whole_loss(tied: str, chunk: int) -> None:
    config = tiny(f"model.tied_embeddings={tied}")
    pieces, whole = unsharded(config), unsharded(config)
    loss = pieces(*batch_of(config), chunk=chunk)
    loss.backward()
    targets = int((batch_of(config)[2] != IGNORED).sum())
    expected = mean_loss(whole, packed(0, config)) * targets
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    named = zip(pieces.named_parameters(), whole.parameters(), strict=True)
    for (name, found), parameter in named:
        assert found.grad is not None
        assert parameter.grad is not None
        difference = (found.grad - parameter.grad).norm()
        assert parameter.grad.norm() > 0, name
        assert difference < 1e-5 * parameter.grad.norm(), name


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        sizes = [tensor.numel() for tensor in results if isinstance(tensor, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


def test_the_whole_logits_never_exist() -> None:
    config = tiny("model.vocabulary_size=512")
    model, batch = unsharded(config), batch_of(config)
    weight, everything = 512 * 32, batch[0].numel() * 512

    def largest(chunk: int) -> int:
        with Largest() as seen:
            model(*batch, chunk=chunk).backward()
        return seen.numbers

    assert largest(chunk=8) <= weight < everything
    assert largest(chunk=batch[0].numel()) == everything


def test_no_piece_of_the_logits_waits_for_the_backward_pass() -> None:
    config = tiny("model.vocabulary_size=512")
    model, batch = unsharded(config), batch_of(config)
    everything = batch[0].numel() * 512

    def kept(chunk: int) -> int:
        numbers = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(*batch, chunk=chunk)
        return numbers

    assert kept(chunk=batch[0].numel()) - kept(chunk=8) >= everything


def test_padding_adds_nothing(model: Transformer) -> None:
    tokens, documents, labels = batch_of(tiny())
    empty = torch.zeros_like(tokens)
    padded = (
        torch.cat((tokens, empty)),
        torch.cat((documents, empty + PADDING)),
        torch.cat((labels, empty + IGNORED)),
    )
    with torch.no_grad():
        torch.testing.assert_close(model(*padded), model(tokens, documents, labels))
        assert model(empty, empty + PADDING, empty + IGNORED).item() == 0


def weights(config: Config) -> Iterator[tuple[str, Tensor]]:
    with torch.device("meta"):
        model = Transformer(config.model)
    for name, parameter in parameters_by_name(model):
        shape, seed = parameter.shape, config.run.seed
        yield name, initial_weight(name, shape, config.model, seed, CPU)


def test_weights_start_with_the_spread_of_gpt2() -> None:
    config = tiny("model.hidden_size=128", "model.ffn_size=256", "model.layers=8")
    residual = 0.02 / math.sqrt(2 * 8)
    expected = {
        "embedding.weight": 0.02,
        "head.output.weight": 0.02,
        "blocks.0.attention.q_proj.weight": 0.02,
        "blocks.7.ffn.up_proj.weight": 0.02,
        "blocks.0.attention.o_proj.weight": residual,
        "blocks.7.ffn.down_proj.weight": residual,
    }
    found = dict(weights(config))
    for name, std in expected.items():
        weight = found[name]
        assert weight.std().item() == pytest.approx(std, rel=0.06), name
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel()), name
    norms = [weight for name, weight in found.items() if "norm" in name]
    assert len(norms) == 2 * 8 + 1
    assert all(torch.equal(norm, torch.ones(128)) for norm in norms)


def test_weights_are_a_function_of_the_seed_and_the_name() -> None:
    first, again, other = (dict(weights(tiny(f"run.seed={seed}"))) for seed in (1, 1, 2))
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, other[name]) == (weight.ndim == 1), name
    matrices = [weight for weight in first.values() if weight.ndim > 1]
    starts = {tuple((w.flatten()[:4] / w.std()).tolist()) for w in matrices}
    assert len(starts) == len(matrices)


def test_weights_never_change_between_versions() -> None:
    # A run that is started again without a checkpoint must start from the same numbers.
    weight = initial_weight("embedding.weight", torch.Size((2, 2)), tiny().model, 0, CPU)
    expected = torch.tensor([[0.0033153999, -0.015995979], [-0.013069992, -0.013752269]])
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)


def test_attention_scores_depend_on_distance_alone() -> None:
    table = rotary_table(64, 16, 10_000.0, CPU)
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))

    def score(i: int, j: int) -> float:
        turned = rotate(torch.stack((query, key)).view(2, 1, 1, 16).expand(2, 1, 64, 16), table)
        return float(turned[0, 0, i] @ turned[1, 0, j])

    for distance in (0, 1, 7, 30):
        scores = [score(start + distance, start) for start in (0, 1, 13, 33)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-4)
    assert score(7, 0) != pytest.approx(score(0, 7), abs=1e-2)
    assert score(7, 0) != pytest.approx(score(8, 0), abs=1e-2)


def test_rotary_positions_are_those_of_llama() -> None:
    # Half of a head is the real part and half the imaginary part; pair i turns by theta**(-2i/d).
    size, theta = 8, 500_000.0
    x = torch.randn(1, 1, 40, size, generator=torch.Generator().manual_seed(1)).double()
    angles = torch.outer(
        torch.arange(40).double(), theta ** (-torch.arange(0, size, 2).double() / size)
    )
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    found = rotate(x, rotary_table(40, size, theta, CPU))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
