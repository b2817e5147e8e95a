"""Tokenizers of other models: the ids of their own library, and none of a special token from a text."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pretrained import LAYOUTS, Files, llama_2, llama_3, qwen_2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from panthalassa.corpus.pretrained_tokenizer import PretrainedTokenizer
from panthalassa.corpus.text_tokenizer import Place
from panthalassa.corpus.tokenizer import open_tokenizer
from panthalassa.errors import ConfigError


def unigram() -> Files:
    """Its special tokens are words of the vocabulary, too."""
    letters = [(letter, -4.0) for letter in "▁abcdetsh<>/|_"]
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁the", -2.0), ("sea", -2.0)]
    core = Tokenizer(models.Unigram([*words, *letters], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([AddedToken(word, special=True) for word, _ in words[:3]])
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer.json": core.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def careless() -> Files:
    """What its configuration calls special is an ordinary added token in tokenizer.json."""
    files = qwen_2()
    content = json.loads(files["tokenizer.json"])
    for token in content["added_tokens"]:
        token["special"] = False
    return {**files, "tokenizer.json": json.dumps(content).encode()}


MADE = {name: make() for name, make in LAYOUTS.items()}
OPENED = {name: PretrainedTokenizer(files, name) for name, files in MADE.items()}
ALL = {
    **OPENED,
    "unigram": PretrainedTokenizer(unigram(), "unigram"),
    "careless": PretrainedTokenizer(careless(), "careless"),
}
SPELLED = [
    *("<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    *("<|endoftext|>", "<|im_end|>", "<|start_header_id|>"),
]
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from([*SPELLED, " ", "\n", "the sea", "海", "ทะเล", "▁", "<|", "|>", "<0x41>"]),
    max_size=8,
).map("".join)
PLACES = st.sampled_from(list(Place))
names = pytest.mark.parametrize("name", ALL)


def special(tokenizer: PretrainedTokenizer) -> set[int]:
    """All ids that its file and its configuration call special."""
    core = Tokenizer.from_str(tokenizer.files()["tokenizer.json"].decode())
    added = core.get_added_tokens_decoder().items()
    named = {id for id in (tokenizer.bos, tokenizer.eos, tokenizer.pad) if id is not None}
    return named | {id for id, token in added if token.special}


@names
@given(text=TEXTS, place=PLACES)
def test_no_text_becomes_a_special_token(name: str, text: str, place: Place) -> None:
    tokenizer = ALL[name]
    ids = tokenizer.encode(text, place)
    unknown = {0} if name == "unigram" else set()
    assert (special(tokenizer) - unknown).isdisjoint(ids)
    assert max(ids, default=0) < tokenizer.vocabulary_size


@pytest.mark.parametrize("name", OPENED)
@given(text=TEXTS)
def test_harmless_texts_have_the_ids_of_their_own_library(name: str, text: str) -> None:
    core = tokenizers.Tokenizer.from_str(MADE[name]["tokenizer.json"].decode())
    theirs = core.encode(text, add_special_tokens=False).ids
    if special(OPENED[name]).isdisjoint(theirs):
        assert OPENED[name].encode(text) == theirs


def test_what_a_vocabulary_lacks_is_its_unknown_token() -> None:
    tokenizer = ALL["unigram"]
    assert tokenizer.encode("sea海") == [*tokenizer.encode("sea"), 0]


def test_a_long_text_of_nothing_but_special_tokens_is_text() -> None:
    for name, tokenizer in ALL.items():
        text = tokenizer.decode(tokenizer.encode("<s></s>" * 5000))
        assert name == "unigram" or text == "<s></s>" * 5000, name
        assert len(text) == 35_000, name


def test_lone_surrogates_are_replaced() -> None:
    for tokenizer in OPENED.values():
        assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


@pytest.mark.parametrize("name", ["llama 3", "qwen 2", "llama 2"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30))
def test_texts_come_back(name: str, text: str) -> None:
    tokenizer = OPENED[name]
    found = tokenizer.decode(tokenizer.encode(text))
    assert found == tokenizer.decode(tokenizer.encode(found))
    if name == "llama 3":
        assert found == text


@names
@given(text=TEXTS, more=st.lists(st.integers(0, 300), max_size=12))
def test_what_comes_piece_by_piece_is_what_is_decoded(
    name: str, text: str, more: list[int]
) -> None:
    tokenizer = ALL[name]
    size = tokenizer.vocabulary_size
    ids = [*tokenizer.encode(text), *(id % size for id in more)]
    stream = tokenizer.decoder()
    found = "".join(map(stream.add, ids)) + stream.end()
    decoded = tokenizer.decode(ids)
    # Of bytes that are no UTF-8, byte fallback takes back those before them that were.
    assert found == decoded or (name.startswith("llama 2") and "\ufffd" in decoded)


@pytest.mark.parametrize("name", OPENED)
def test_a_continuation_keeps_the_space_before_it(name: str) -> None:
    tokenizer = OPENED[name]
    ids = tokenizer.encode("the sea is slow")
    before = tokenizer.encode("the sea")
    assert ids[: len(before)] == before
    stream = tokenizer.decoder([*tokenizer.beginning, *before])
    pieces = "".join(map(stream.add, ids[len(before) :])) + stream.end()
    assert "the sea" + pieces == "the sea is slow"


@pytest.mark.parametrize("name", OPENED)
@given(
    prompt=st.text("鯨鰐🐳ша\ufffd", max_size=30), more=st.text("鯨鰐🐳ш ", min_size=1, max_size=8)
)
def test_a_continuation_behind_characters_of_bytes_is_whole(
    name: str, prompt: str, more: str
) -> None:
    tokenizer = OPENED[name]
    before = [*tokenizer.beginning, *tokenizer.encode(prompt)]
    ids = tokenizer.encode("." + more, Place.WITHIN)
    stream = tokenizer.decoder(before)
    assert "".join(map(stream.add, ids)) + stream.end() == "." + more


@pytest.mark.parametrize("name", OPENED)
def test_bytes_that_never_become_a_character_are_shown_before_they_end(name: str) -> None:
    tokenizer = OPENED[name]
    core = Tokenizer.from_str(MADE[name]["tokenizer.json"].decode())
    byte = core.token_to_id("<0x80>" if "llama 2" in name else "Ģ")
    whole = tokenizer.encode("海 slow", Place.WITHIN)
    stream = tokenizer.decoder()
    pieces = [stream.add(id) for id in [byte] * 60]
    assert sum(map(len, pieces)) >= 40
    said = "".join(pieces) + "".join(map(stream.add, whole)) + stream.end()
    assert said == tokenizer.decode([*[byte] * 60, *whole])


def test_delimiters_are_those_of_the_files() -> None:
    llama, qwen, mistral = OPENED["llama 3"], OPENED["qwen 2"], OPENED["llama 2"]
    core = Tokenizer.from_str(MADE["llama 3"]["tokenizer.json"].decode())
    named = [core.token_to_id(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id")]
    assert (llama.bos, llama.eos, llama.pad) == (named[0], named[1], named[1])
    assert (llama.beginning, llama.ends) == ((named[0],), (named[1], named[2]))
    core = Tokenizer.from_str(MADE["qwen 2"]["tokenizer.json"].decode())
    assert (qwen.bos, qwen.beginning) == (None, ())
    assert qwen.eos == core.token_to_id("<|im_end|>")
    assert qwen.pad == core.token_to_id("<|endoftext|>")
    assert qwen.ends == (qwen.eos, qwen.pad)
    assert (mistral.bos, mistral.eos, mistral.pad, mistral.beginning) == (1, 2, 2, (1,))
    assert PretrainedTokenizer(llama_2(add_bos_token=False), "there").beginning == ()


def test_what_ends_a_turn_ends_what_is_said_though_no_file_names_it() -> None:
    files = llama_3()
    del files["generation_config.json"]
    assert PretrainedTokenizer(files, "there").ends == OPENED["llama 3"].ends


@pytest.mark.parametrize("name", LAYOUTS)
def test_its_files_stay_as_they_are(name: str) -> None:
    assert OPENED[name].files() == MADE[name]
    assert isinstance(open_tokenizer(MADE[name], "there"), PretrainedTokenizer)


def test_one_without_a_template_gets_one_in_a_file_of_its_own() -> None:
    files = llama_2(chat_template=None)
    kept = PretrainedTokenizer(files, "there").files()
    assert b"<|assistant|>" in kept.pop("chat_template.jinja")
    assert kept == files


def changed(**parts: Any) -> Files:
    """Llama 3's, with these parts of tokenizer.json."""
    content = {**json.loads(MADE["llama 3"]["tokenizer.json"]), **parts}
    return {**MADE["llama 3"], "tokenizer.json": json.dumps(content).encode()}


def with_ends(ends: Any) -> Files:
    config = {"tokenizer_config.json": b"{}"} if isinstance(ends, int) else {}
    generation = json.dumps({"eos_token_id": ends}).encode()
    return {**llama_3(), **config, "generation_config.json": generation}


def single_word() -> Files:
    tokens = json.loads(MADE["llama 3"]["tokenizer.json"])["added_tokens"]
    return changed(added_tokens=[{**token, "single_word": True} for token in tokens])


def backtracking() -> Files:
    """Its expression takes exponential time, of which the library allows only so much."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    return changed(pre_tokenizer={**split, "invert": False})


def test_a_text_on_which_the_library_fails_is_refused() -> None:
    tokenizer = PretrainedTokenizer(backtracking(), "there")
    with pytest.raises(ConfigError, match=r"there/tokenizer.json makes no ids of a text: "):
        tokenizer.encode("a" * 28 + "b")


WORDS: dict[str, Any] = {"type": "WordLevel", "unk_token": "<u>", "vocab": {"a": 0}}
NO_TOKENIZER = "there/tokenizer.json is not a tokenizer"
WRONG: dict[str, tuple[Callable[[], Files], str]] = {
    "a token that is not there": (
        lambda: llama_3(eos_token="<|stop|>"),
        r"eos_token is '<\|stop\|>', and tokenizer.json has no such token",
    ),
    "an end that is not there": (
        lambda: with_ends(999_999),
        "generation_config.json: eos_token_id is 999999, and tokenizer.json has no such token",
    ),
    "one of the ends": (lambda: with_ends([381, 999_999]), "eos_token_id is 999999"),
    "a word": (single_word, r"'<\|begin_of_text\|>' is special and single_word"),
    "no characters": (
        lambda: changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "tokenizer.json is not a tokenizer: Precompiled",
    ),
    "no id in front": (
        lambda: changed(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
        NO_TOKENIZER,
    ),
    "no unknown token": (lambda: changed(model=WORDS), f"{NO_TOKENIZER}: WordLevel error"),
    "no unknown id": (
        lambda: changed(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
        NO_TOKENIZER,
    ),
    "null": (
        lambda: {**llama_3(), "tokenizer_config.json": b"null"},
        "there/tokenizer_config.json is no JSON of an object",
    ),
    "no end": (lambda: qwen_2(eos_token=None), "no file says which token ends a text"),
    "no token": (lambda: llama_3(bos_token=7), r"tokenizer_config.json: bos_token: Input should"),
    "no template": (lambda: llama_3(chat_template=7), r"tokenizer_config.json: chat_template: "),
    "an endless template": (
        lambda: llama_3(chat_template="x" * 300_000),
        "chat_template: String should have at most",
    ),
    "no ids": (
        lambda: {**llama_3(), "generation_config.json": b'{"eos_token_id": [2, "x"]}'},
        "generation_config.json: eos_token_id: ",
    ),
    "no JSON": (lambda: {**llama_3(), "tokenizer_config.json": b"{"}, "config.json is no JSON"),
    "no tokenizer": (lambda: {"tokenizer.json": b"{}"}, "there/tokenizer.json is not a tokenizer"),
    "half a tokenizer": (lambda: {"tokenizer.json": b'{"a'}, "there/tokenizer.json is no JSON"),
    "a template of bytes": (
        lambda: {**llama_3(), "chat_template.jinja": b"\xff"},
        "chat_template.jinja is no UTF-8",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_files_that_can_not_be_are_refused_by_name(wrong: str) -> None:
    make, told = WRONG[wrong]
    with pytest.raises(ConfigError, match=told):
        open_tokenizer(make(), "there")
