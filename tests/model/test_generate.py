"""Continuations are what the model says, and the same ones every time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import tiny, unsharded

from panthalassa.errors import ConfigError
from panthalassa.model.generate import generate, generate_batch
from panthalassa.model.kv_cache import KVCache
from panthalassa.model.sampling import Sampling
from panthalassa.model.transformer import Transformer

NEVER: tuple[int, ...] = ()


VARIANTS = {
    "plain": (),
    "a key for each query, tied": ("model.kv_heads=4", "model.tied_embeddings=true"),
    "scaled": ("model.rope_scaling={factor: 8, low_turns: 1, high_turns: 4, original_length: 16}",),
}


def opinionated(*overrides: str) -> Transformer:
    """Weights so large that the model has strong and various opinions."""
    model = unsharded(tiny(*overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return opinionated()


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Transformer:
    return opinionated(*VARIANTS[request.param])


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
    assert generate(model, prompt, 12, 0.0, seed=1, stop_ids=NEVER) == expected
    assert generate(model, prompt, 12, 0.0, seed=2, stop_ids=NEVER) == expected
    assert prompt == list(range(length))


def test_the_stop_id_ends_a_continuation_and_is_not_part_of_it(model: Transformer) -> None:
    free = greedy(model, [7, 8, 9], 12)
    for stop in free:
        found = generate(model, [7, 8, 9], 12, 0.0, seed=0, stop_ids=(stop,))
        assert found == free[: free.index(stop)]


def test_the_limit_is_kept(model: Transformer) -> None:
    assert generate(model, [1], 0, 0.0, seed=0, stop_ids=NEVER) == []
    assert len(generate(model, [1], 5, 1.0, seed=0, stop_ids=NEVER)) == 5


def test_sampling_is_fixed_by_its_seed(model: Transformer) -> None:
    torch.manual_seed(1)
    first = generate(model, [1, 2], 12, 1.0, seed=3, stop_ids=NEVER)
    torch.manual_seed(2)
    assert generate(model, [1, 2], 12, 1.0, seed=3, stop_ids=NEVER) == first
    assert generate(model, [1, 2], 12, 1.0, seed=4, stop_ids=NEVER) != first


def test_a_higher_temperature_leaves_the_most_likely_token_more_often(model: Transformer) -> None:
    (top,) = greedy(model, [5], 1)
    shares = []
    for temperature in (0.02, 0.4, 100.0):
        found = [generate(model, [5], 1, temperature, seed, NEVER)[0] for seed in range(60)]
        shares.append(found.count(top) / 60)
    assert shares[0] > shares[1] > shares[2]


PROMPTS = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, limit=st.integers(0, 12), batch=st.integers(1, 6))
def test_a_prompt_is_continued_in_any_batch_as_it_is_without_a_cache(
    variant: Transformer, prompts: list[list[int]], limit: int, batch: int
) -> None:
    expected = [generate(variant, prompt, limit, 0.0, 0, NEVER) for prompt in prompts]
    assert generate_batch(variant, prompts, limit, batch=batch) == expected


@settings(max_examples=25, deadline=None)
@given(
    prompts=PROMPTS,
    seed=st.integers(0, 2**40),
    stop=st.integers(0, 255),
    top_p=st.sampled_from([0.5, 1.0]),
    penalty=st.sampled_from([1.0, 1.5]),
)
def test_what_is_drawn_for_a_prompt_does_not_depend_on_its_batch(
    model: Transformer, prompts: list[list[int]], seed: int, stop: int, top_p: float, penalty: float
) -> None:
    sampling = Sampling(1.5, 0, top_p, seed, penalty)
    found = generate_batch(model, prompts, 8, sampling, {stop})
    alone = [generate_batch(model, [prompt], 8, sampling, {stop})[0] for prompt in prompts]
    assert found == alone
    assert all(stop not in text for text in found)


def test_with_and_without_a_cache_the_same_is_drawn(model: Transformer) -> None:
    for seed in range(5):
        (found,) = generate_batch(model, [[1, 2, 3]], 20, Sampling(1.0, seed=seed))
        assert generate(model, [1, 2, 3], 20, 1.0, seed, NEVER) == found


def test_each_prompt_can_be_sampled_in_its_own_way(model: Transformer) -> None:
    settings = [Sampling(), *(Sampling(2.0, seed=seed) for seed in range(4))]
    found = generate_batch(model, [[1, 2]] * 5, 12, settings)
    assert found == [generate_batch(model, [[1, 2]], 12, setting)[0] for setting in settings]
    assert len({tuple(text) for text in found}) == 5


def test_each_position_is_read_once(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    forward = KVCache.read

    def counted(self: KVCache, new: list[list[int]]) -> torch.Tensor:
        read.append([len(ids) for ids in new])
        return forward(self, new)

    monkeypatch.setattr(KVCache, "read", counted)
    generate_batch(model, [[1, 2], [3, 4, 5, 6, 7]], 4)
    assert read == [[5, 2], [1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("room", [79, 30, 1])
def test_logits_of_a_cache_are_those_of_the_whole_text(variant: Transformer, room: int) -> None:
    """Also of what is read in several pieces of unequal length, and with less room at first."""
    texts = torch.randint(0, 256, (3, 60), generator=torch.Generator().manual_seed(4)).tolist()
    cuts = [(0, 20, 33, 34), (0, 7, 8, 9), (0, 1, 20, 60)]
    cache = KVCache(variant, 3, room)
    for step in range(3):
        logits = cache.read(
            [text[cut[step] : cut[step + 1]] for text, cut in zip(texts, cuts, strict=True)]
        )
        for found, text, cut in zip(logits, texts, cuts, strict=True):
            ids = torch.tensor([text[: cut[step + 1]]])
            with torch.no_grad():
                expected = variant(ids, torch.zeros_like(ids))[0, -1]
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_who_watches_ends_one_continuation_and_no_other(model: Transformer) -> None:
    prompts = [[7, 8], [9]]
    free = generate_batch(model, prompts, 10)
    seen: list[tuple[int, int]] = []

    def watch(number: int, token: int) -> bool:
        seen.append((number, token))
        return number == 1 and len([n for n, _ in seen if n == 1]) == 3

    assert generate_batch(model, prompts, 10, watch=watch) == [free[0], free[1][:3]]
    assert [token for number, token in seen if number == 0] == free[0]


def test_an_empty_prompt_is_refused_with_its_number(model: Transformer) -> None:
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        generate_batch(model, [[1], []], 3)
    assert generate_batch(model, [], 3) == []
