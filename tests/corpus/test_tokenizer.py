"""The tokenizer gives back every text, and never takes a delimiter from one."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.tokenizer import SPECIAL, Tokenizer, read_tokenizer
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage, open_storage

TEXTS = ["the sea, the tide and the deep sea", "η θάλασσα", "ทะเลลึก ทะเลลึก", "海は深い", "12345"]
TEXTS += [f"{special} " * 50 for special in SPECIAL]
TOKENIZER = Tokenizer.train(TEXTS, 400)

# Every plane of Unicode; halves of surrogate pairs are no text.
anything = st.text(st.characters(exclude_categories=["Cs"]))


@given(anything)
def test_decoding_gives_back_the_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("plane", range(17))
def test_one_character_of_every_plane_survives(plane: int) -> None:
    for offset in (0x20, 0x100, 0xFFFD):
        text = f"a{chr(plane * 0x10000 + offset)} b"
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(anything, max_size=5))
def test_a_batch_is_encoded_as_its_texts_are(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


@given(st.lists(st.sampled_from([*SPECIAL, "<|", "|>", " ", "x", "bos"]), max_size=8))
def test_text_that_spells_a_special_token_gets_ordinary_ids(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert not {TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.pad} & set(ids)
    assert TOKENIZER.decode(ids) == text


def test_delimiters_vanish_in_decoding() -> None:
    ids = [TOKENIZER.bos, *TOKENIZER.encode("tide"), TOKENIZER.eos, TOKENIZER.pad]
    assert TOKENIZER.decode(ids) == "tide"


def test_special_tokens_have_the_first_ids_and_all_ids_are_below_the_size() -> None:
    assert (TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.pad) == (0, 1, 2)
    assert 260 < TOKENIZER.vocabulary_size <= 400
    assert max(TOKENIZER.encode("".join(TEXTS))) < TOKENIZER.vocabulary_size


def test_frequent_words_become_single_tokens_also_where_vowels_are_marks() -> None:
    assert len(TOKENIZER.encode("ทะเลลึก")) == 1


def test_training_does_not_depend_on_the_order_of_the_texts() -> None:
    texts = [f"{word} {number}" for number in range(300) for word in ("sea", "θάλασσα", "ทะเล")]
    expected = Tokenizer.train(texts, 500).to_bytes()
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert Tokenizer.train(texts, 500).to_bytes() == expected


def test_a_saved_tokenizer_is_the_same_tokenizer() -> None:
    again = Tokenizer.from_bytes(TOKENIZER.to_bytes())
    assert again.to_bytes() == TOKENIZER.to_bytes()
    assert again.encode("<|bos|> sea") == TOKENIZER.encode("<|bos|> sea")


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"model": 1}'])
def test_bytes_that_are_no_tokenizer_are_refused(data: bytes) -> None:
    with pytest.raises(CorpusError, match=r"is not a tokenizer"):
        Tokenizer.from_bytes(data)


def test_a_tokenizer_with_other_special_tokens_is_refused() -> None:
    data = TOKENIZER.to_bytes().replace(b"<|bos|>", b"<|BOS|>")
    with pytest.raises(CorpusError, match="does not begin with the special tokens"):
        Tokenizer.from_bytes(data)


def test_a_corpus_gives_its_tokenizer(prepared: tuple[Manifest, Storage]) -> None:
    manifest, storage = prepared
    tokenizer = read_tokenizer(storage, manifest)
    assert tokenizer.vocabulary_size == manifest.vocabulary_size
    assert (tokenizer.bos, tokenizer.eos) == (manifest.bos, manifest.eos)


def test_a_changed_or_missing_tokenizer_is_named(
    prepared: tuple[Manifest, Storage], tmp_path: Path
) -> None:
    manifest, storage = prepared
    copy = open_storage(str(tmp_path))
    with pytest.raises(CorpusError, match=r"tokenizer\.json can not be read"):
        read_tokenizer(copy, manifest)
    data = bytearray(storage.read("tokenizer.json"))
    data[len(data) // 2] ^= 1
    copy.write("tokenizer.json", bytes(data))
    with pytest.raises(CorpusError, match=r"tokenizer\.json is corrupt"):
        read_tokenizer(copy, manifest)
