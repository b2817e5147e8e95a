"""Continuations are what the model says, and the same ones every time."""

import pytest
import torch
from ranks import tiny, unsharded

from panthalassa.model.generate import generate
from panthalassa.model.transformer import Transformer

NEVER = -1


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Weights so large that the model has strong and various opinions."""
    model = unsharded(tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


def greedy(model: Transformer, prompt: list[int], limit: int) -> list[int]:
    """The most likely token, one after the other, without padding."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), torch.zeros(1, len(ids), dtype=torch.long))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 60, 64])
def test_temperature_zero_takes_the_most_likely_token(model: Transformer, length: int) -> None:
    prompt = list(range(length))
    expected = greedy(model, prompt, 12)
    assert len(set(expected)) > 3
    assert generate(model, prompt, 12, 0.0, seed=1, stop=NEVER) == expected
    assert generate(model, prompt, 12, 0.0, seed=2, stop=NEVER) == expected
    assert prompt == list(range(length))


def test_the_stop_id_ends_a_continuation_and_is_not_part_of_it(model: Transformer) -> None:
    free = greedy(model, [7, 8, 9], 12)
    for stop in free:
        found = generate(model, [7, 8, 9], 12, 0.0, seed=0, stop=stop)
        assert found == free[: free.index(stop)]


def test_the_limit_is_kept(model: Transformer) -> None:
    assert generate(model, [1], 0, 0.0, seed=0, stop=NEVER) == []
    assert len(generate(model, [1], 5, 1.0, seed=0, stop=NEVER)) == 5


def test_sampling_is_fixed_by_its_seed(model: Transformer) -> None:
    torch.manual_seed(1)
    first = generate(model, [1, 2], 12, 1.0, seed=3, stop=NEVER)
    torch.manual_seed(2)
    assert generate(model, [1, 2], 12, 1.0, seed=3, stop=NEVER) == first
    assert generate(model, [1, 2], 12, 1.0, seed=4, stop=NEVER) != first


def test_a_higher_temperature_leaves_the_most_likely_token_more_often(model: Transformer) -> None:
    (top,) = greedy(model, [5], 1)
    shares = []
    for temperature in (0.02, 0.4, 100.0):
        found = [generate(model, [5], 1, temperature, seed, NEVER)[0] for seed in range(60)]
        shares.append(found.count(top) / 60)
    assert shares[0] > shares[1] > shares[2]
