"""Text comes as its ids do, in whole characters, and nothing that was shown changes."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import tiny, unsharded

from panthalassa.corpus.tokenizer import SPECIAL, Tokenizer
from panthalassa.model.sampling import Sampling
from panthalassa.model.text import TextStream, continue_texts, ids_of
from panthalassa.model.transformer import Transformer

SIZE = 320


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sea, the sea and the land", "Θάλασσα θάλασσα"] * 3, SIZE)


def pieces(tokenizer: Tokenizer, ids: list[int], *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    found = [stream.add(id) for id in ids]
    return [*found, stream.end()], stream


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, SIZE + 9)))
def test_pieces_are_the_text_of_all_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Whatever they are: halves of characters, special tokens, no ids at all."""
    found, stream = pieces(tokenizer, ids)
    assert "".join(found) == stream.text == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_a_character_is_shown_once_it_is_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    found, _ = pieces(tokenizer, ids)
    whole = [
        b"".join(map(tokenizer.bytes_of, ids[:count])).decode(errors="ignore")
        for count in range(1, len(ids) + 1)
    ]
    assert list(accumulate(found))[: len(ids)] == whole
    assert "".join(found) == text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab\n", max_size=30),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_stop_string_that_is_whole_first(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    found, stream = pieces(tokenizer, tokenizer.encode(text), *stop)
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert "".join(found) == text[: min(ends, default=(0, len(text)))[1]]
    assert stream.stopped == bool(ends)


def test_what_is_no_stop_string_is_not_held_back(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(character)[0] for character in "a##b###c"]
    assert pieces(tokenizer, ids, "###")[0] == ["a", "", "", "##b", "", "", "", "", ""]


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = unsharded(tiny(f"model.vocabulary_size={SIZE}"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


def test_texts_are_shown_as_they_are_returned(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = [ids_of(tokenizer, text) for text in ("the sea", "θάλασσα and", "x")]
    sampling = Sampling(1.0, seed=2)
    shown = ["", "", ""]

    def show(number: int, piece: str) -> None:
        shown[number] += piece

    found = continue_texts(model, tokenizer, prompts, 20, sampling, show=show)
    assert found == shown
    assert min(map(len, found)) > 5
    for prompt, text in zip(prompts, found, strict=True):
        assert continue_texts(model, tokenizer, [prompt], 20, sampling) == [text]
    stop = found[0][4:6]
    stopped = continue_texts(model, tokenizer, prompts, 20, sampling, [stop])
    assert stopped == [text.partition(stop)[0] for text in found]


def test_a_prompt_begins_as_documents_do_and_is_never_a_special_token(
    tokenizer: Tokenizer,
) -> None:
    ids = ids_of(tokenizer, "<|eos|> the sea")
    assert ids[0] == tokenizer.bos
    assert min(ids[1:]) >= len(SPECIAL)
