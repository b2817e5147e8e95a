"""Tokens are drawn as the distribution says that is asked for, and from nothing else."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panthalassa.errors import ConfigError
from panthalassa.model.sampling import Sampler, Sampling

DRAWS = 2000


def drawn(logits: Tensor, sampling: Sampling, text: list[int]) -> Counter[int]:
    sampler = Sampler(sampling, text)
    return Counter(int(sampler.choose(logits, text)) for _ in range(DRAWS))


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -math.inf])
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.99)):
        found = drawn(logits, Sampling(temperature, top_p=top_p), [0])
        for token, share in enumerate(torch.softmax(logits / temperature, 0).tolist()):
            deviation = math.sqrt(share * (1 - share) / DRAWS)
            assert abs(found[token] / DRAWS - share) <= 4.5 * deviation


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 0.95),
    penalty=st.floats(0.5, 2),
    data=st.data(),
)
def test_what_is_drawn_is_what_transformers_would_draw_from(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    penalty: float,
    data: st.DataObject,
) -> None:
    library = pytest.importorskip("transformers.generation.logits_process")
    text = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=5))
    scores, ids = torch.tensor([logits]), torch.tensor([text])
    steps = [
        library.RepetitionPenaltyLogitsProcessor(penalty),
        library.TemperatureLogitsWarper(temperature),
        *([library.TopKLogitsWarper(top_k)] if top_k else []),
        library.TopPLogitsWarper(top_p),
    ]
    for step in steps:
        scores = step(ids, scores)
    sampler = Sampler(Sampling(temperature, top_k, top_p, 1, penalty), text)
    for _ in range(20):
        assert scores[0, int(sampler.choose(torch.tensor(logits), text))] > -math.inf


def test_all_tokens_of_the_nucleus_are_drawn_and_no_others() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for top_p, nucleus in ((0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        assert set(drawn(logits, Sampling(1.0, top_p=top_p), [0])) == nucleus
    for top_k, likely in ((1, {1}), (2, {1, 3}), (9, {0, 1, 2, 3})):
        assert set(drawn(logits, Sampling(1.0, top_k=top_k), [0])) == likely


def test_a_penalty_is_that_of_transformers() -> None:
    logits = torch.tensor([2.0, 1.5, -1.0, -1.5])
    assert int(Sampler(Sampling(repetition_penalty=1.2), [0]).choose(logits, [0])) == 0
    assert int(Sampler(Sampling(repetition_penalty=1.4), [0]).choose(logits, [0, 0])) == 1
    negative = torch.tensor([-1.0, -1.5])
    assert int(Sampler(Sampling(repetition_penalty=1.6), [0]).choose(negative, [0])) == 1
    assert logits.tolist() == [2.0, 1.5, -1.0, -1.5]


@pytest.mark.parametrize("temperature", [1e-310, 1e-200, 1e-6])
def test_what_is_almost_no_temperature_is_none(temperature: float) -> None:
    logits = torch.tensor([-1e4, 3.0, 1e4, 0.0])
    assert set(drawn(logits, Sampling(temperature, top_p=0.9), [0])) == {2}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-320),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
    ],
)
def test_what_can_not_be_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value}: expected"):
        Sampling(**{key: value})
