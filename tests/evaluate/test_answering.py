"""What a model answers is what its logits say, whatever is asked beside it."""

import math

import pytest
import torch
from asked import LENGTH, TEXTS, save_model
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate import answering
from panthalassa.evaluate.answering import Answerer, encode, prompt_ids, windows
from panthalassa.evaluate.task import Generation, Likelihood, Likely, Request, Rolling
from panthalassa.exchange.load import Opened, open_model
from panthalassa.model.generate import generate
from panthalassa.storage import open_storage

PIECES = st.text("abct hemär. 海\n", max_size=30) | st.sampled_from(TEXTS)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = save_model(tmp_path_factory.mktemp("asked") / "model")
    return open_model(open_storage(str(folder)), torch.device("cpu"))


def answerer(opened: Opened, batch_tokens: int = 4 * LENGTH) -> Answerer:
    return Answerer(opened.model, opened.tokenizer, LENGTH, batch_tokens)


@torch.no_grad()
def alone(opened: Opened, request: Likelihood | Rolling) -> Likely:
    """The same from the logits of the whole text, which is short."""
    context, asked = encode(opened.tokenizer, request)
    ids = torch.tensor([[*context, *asked]])
    logs = opened.model(ids, torch.zeros_like(ids))[0].double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(asked) - 1)
    nats = sum(float(logs[place, id]) for place, id in zip(places, asked, strict=True))
    greedy = all(int(logs[p].argmax()) == id for p, id in zip(places, asked, strict=True))
    return Likely(nats, greedy, len(asked))


def close(found: object, expected: Likely) -> bool:
    assert isinstance(found, Likely)
    same = (found.greedy, found.tokens) == (expected.greedy, expected.tokens)
    return same and math.isclose(found.nats, expected.nats, rel_tol=1e-4, abs_tol=1e-4)


SAID = PIECES.filter(bool)  # nothing has no likelihood
LIKELIHOODS = st.builds(Likelihood, PIECES, SAID) | st.builds(Rolling, PIECES)


@settings(max_examples=30)
@given(st.lists(LIKELIHOODS, max_size=12), st.sampled_from([1, 40, 1000]))
def test_a_likelihood_is_that_of_the_text_alone(
    opened: Opened, requests: list[Likelihood | Rolling], batch_tokens: int
) -> None:
    answers = answerer(opened, batch_tokens).answers(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert close(answer, alone(opened, request)), request


def test_a_continuation_that_is_likely_is_greedy(opened: Opened) -> None:
    ids = [opened.tokenizer.bos, *opened.tokenizer.encode("the cat")]
    said = opened.tokenizer.decode(generate(opened.model, ids, 1, 0.0, 0, opened.tokenizer.ends))
    requests = [Likelihood("the cat", said), Likelihood("the cat", " mat"), Rolling("")]
    greedy, other, nothing = answerer(opened).answers(requests)
    assert isinstance(greedy, Likely)
    assert isinstance(other, Likely)
    assert greedy.nats > other.nats
    assert nothing == Likely(0.0, True, 0)


@pytest.mark.parametrize("chat", [False, True])
def test_nothing_is_not_the_most_likely_of_all(opened: Opened, chat: bool) -> None:
    asked = Answerer(opened.model, opened.tokenizer, LENGTH, 256, chat)
    with pytest.raises(PanthalassaError, match="how likely '' is behind 'the cat' can not be said"):
        asked.answers([Likelihood("the cat", " mat"), Likelihood("the cat", "")])


def test_a_continuation_that_melts_into_its_context_is_asked_about_by_itself(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    bos = opened.tokenizer.bos
    ids = {"a": [8, 9], "b": [7], "ab": [5, 6]}
    monkeypatch.setattr(Tokenizer, "encode", lambda _, text: ids[text])
    assert encode(opened.tokenizer, Likelihood("a", "b")) == ([bos, 8, 9], [7])


def test_spaces_belong_to_the_word_behind_them(opened: Opened) -> None:
    first, second = answerer(opened).answers(
        [Likelihood("the cat ", "sat"), Likelihood("the cat", " sat")]
    )
    assert first == second


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=60),
    st.lists(st.integers(0, 99), max_size=60),
    st.integers(2, 20),
)
def test_windows_ask_about_each_token_once_with_all_that_fits_before_it(
    context: list[int], continuation: list[int], length: int
) -> None:
    found = list(windows(3, context, continuation, length))
    assert [id for window in found for id in window.targets] == continuation
    text = [*context, *continuation]
    for number, window in enumerate(found):
        assert window.request == 3
        end = len(context) + min((number + 1) * length, len(continuation))
        assert list(window.inputs) == text[max(0, end - 1 - length) : end - 1]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=80), st.integers(2, 20))
def test_windows_of_a_text_are_those_of_the_harness(tokens: list[int], length: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, 0, length, 1))
    expected = [((*context, *asked)[:-1], tuple(asked)) for context, asked in theirs]
    assert [(w.inputs, w.targets) for w in windows(0, [0], tokens, length)] == expected


def test_generations_end_before_their_stop(opened: Opened) -> None:
    plain = Generation("the cat sat", new_tokens=12)
    (said,) = answerer(opened).answers([plain])
    assert isinstance(said, str)
    mark = said[len(said) // 2 :][:2]
    stopped = Generation("the cat sat", (mark, "never said"), 12)
    again, cut = answerer(opened).answers([plain, stopped])
    assert again == said
    assert cut == said[: said.index(mark)]


def test_generations_are_those_of_the_model_alone(opened: Opened) -> None:
    prompts = ["the cat", "", "Ein Hund läuft", "the cat sat on the mat. " * 20]
    requests: list[Request] = [Generation(prompt, new_tokens=16) for prompt in prompts]
    for prompt, said in zip(prompts, answerer(opened).answers(requests), strict=True):
        bos, tail = opened.tokenizer.bos, opened.tokenizer.encode(prompt)
        ids = [bos, *tail[-(LENGTH - 16 - 1) :]]
        alone = generate(opened.model, ids, 16, 0.0, 0, opened.tokenizer.ends)
        assert said == opened.tokenizer.decode(alone)


LONG = "the cat sat on the mat. " * 40


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("new", [1, 16, 40])
def test_what_is_too_long_keeps_its_beginning_and_its_end(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, chat: bool, new: int
) -> None:
    read: list[list[int]] = []
    monkeypatch.setattr(
        answering, "generate_batch", lambda model, prompts, *_: read.extend(prompts)
    )
    asked = Answerer(opened.model, opened.tokenizer, LENGTH, 256, chat)
    requests: list[Request] = [
        Generation(LONG, new_tokens=new),
        Generation("the cat", new_tokens=new),
    ]
    asked.answers(requests)
    whole = prompt_ids(opened.tokenizer, LONG, chat)
    head = whole[: 2 + len(opened.tokenizer.encode("user\n"))] if chat else whole[:1]
    assert read[0] == [*head, *whole[-(LENGTH - new - len(head)) :]]
    assert len(read[0]) + new == LENGTH
    assert read[1] == prompt_ids(opened.tokenizer, "the cat", chat)
    assert asked.cut(requests) == [0]


@pytest.mark.parametrize(
    ("new", "chat"), [(LENGTH, False), (LENGTH + 9, False), (LENGTH - 5, True)]
)
def test_more_new_tokens_than_are_read_are_refused(opened: Opened, new: int, chat: bool) -> None:
    asked = Answerer(opened.model, opened.tokenizer, LENGTH, 256, chat)
    with pytest.raises(PanthalassaError, match=f"{new} tokens behind a prompt leave no room"):
        asked.answers([Generation("the cat", new_tokens=new)])


def test_a_long_context_in_a_chat_keeps_its_headers(opened: Opened) -> None:
    asked = Answerer(opened.model, opened.tokenizer, LENGTH, 256, chat=True)
    request = Likelihood(LONG, "yes")
    context, answer = encode(opened.tokenizer, request, chat=True)
    head = 2 + len(opened.tokenizer.encode("user\n"))
    kept = [*context[:head], *context[-(LENGTH + 1 - len(answer) - head) :]]
    ids = torch.tensor([[*kept, *answer]])
    with torch.no_grad():
        logs = opened.model(ids[:, :-1], torch.zeros_like(ids[:, :-1]))[0].double().log_softmax(-1)
    nats = sum(float(logs[len(kept) - 1 + n, id]) for n, id in enumerate(answer))
    (found,) = asked.answers([request])
    assert isinstance(found, Likely)
    assert found.nats == pytest.approx(nats, rel=1e-4)
    assert asked.cut([request, Rolling(LONG), Likelihood("the cat", " sat")]) == [0]


def test_samples_of_a_prompt_differ_and_come_again(opened: Opened) -> None:
    requests = [
        Generation("the", new_tokens=12, temperature=1.0, sample=number) for number in range(3)
    ]
    first = answerer(opened).answers(requests)
    assert len(set(map(str, first))) == 3
    assert answerer(opened).answers(requests[::-1]) == first[::-1]


def test_in_a_chat_the_context_is_what_a_user_says(opened: Opened) -> None:
    request = Likelihood("is the cat there? ", " yes ")
    context, asked = encode(opened.tokenizer, request, chat=True)
    spelled = prompt_ids(opened.tokenizer, "is the cat there?", chat=True)
    assert (context, asked) == (spelled, opened.tokenizer.encode("yes"))
    said = Answerer(opened.model, opened.tokenizer, LENGTH, 256, chat=True).answers(
        [request, Generation("is the cat there?", new_tokens=8), Rolling("the cat")]
    )
    plain = answerer(opened).answers([request, Rolling("the cat")])
    assert said[0] != plain[0]
    assert said[2] == plain[1]
    alone = generate(opened.model, spelled, 8, 0.0, 0, opened.tokenizer.ends)
    assert said[1] == opened.tokenizer.decode(alone)
