"""The tokenizer gives back every text, and never takes a delimiter from one."""

import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import udhr
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.config import Corpus
from panthalassa.corpus.manifest import IMAGE_DELIMITERS, Manifest
from panthalassa.corpus.tokenizer import SPECIAL, Tokenizer, ids_of_image, read_tokenizer
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


@given(anything)
def test_a_document_is_its_text_between_delimiters(text: str) -> None:
    document = TOKENIZER.encode_document(text)
    assert document.dtype == np.int32
    assert document.tolist() == [TOKENIZER.bos, *TOKENIZER.encode(text), TOKENIZER.eos]


def reference(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """What others make of the file, told as Panthalassa is that texts hold no special tokens."""
    core = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
    core.encode_special_tokens = True
    return core


few_letters = st.text(st.sampled_from("ab \n<|>ทะเลกี้海é12\u0301"), max_size=60)


@given(st.lists(few_letters | anything, max_size=6), st.integers(288, 420), few_letters | anything)
@settings(max_examples=200)
def test_ids_are_those_of_the_library_that_trained_whatever_it_was_trained_on(
    texts: list[str], vocabulary_size: int, text: str
) -> None:
    """Also where merges overlap, as with few letters: only then could the two part."""
    tokenizer = Tokenizer.train(texts, vocabulary_size)
    core = reference(tokenizer)
    for other in (text, *texts, "".join(texts)):
        assert tokenizer.encode(other) == core.encode(other).ids


def test_ids_are_those_of_the_library_that_trained_in_every_script_of_the_declaration() -> None:
    found = udhr.read_declarations(udhr.folder())
    texts = ["\n".join(declaration.paragraphs)[:2000] for declaration in found]
    tokenizer = Tokenizer.train(texts[::3], 4096)
    assert tokenizer.vocabulary_size == 4096
    expected = reference(tokenizer).encode_batch_fast(texts)
    different = [
        text[:40]
        for text, encoding in zip(texts, expected, strict=True)
        if tokenizer.encode(text) != encoding.ids
    ]
    assert len(texts) > 300
    assert not different


@pytest.mark.parametrize("piece", [" ", "\n", " \t", "a", "^", "1"])
def test_a_line_of_a_million_characters_is_encoded(piece: str) -> None:
    """At so many spaces the search for their end can overflow, which is a panic in tiktoken."""
    text = piece * (1_000_000 // len(piece))
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_halves_of_surrogate_pairs_are_no_text_and_no_crash() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"


@given(st.lists(st.sampled_from([*SPECIAL, "<|", "|>", " ", "x", "bos"]), max_size=8))
def test_text_that_spells_a_special_token_gets_ordinary_ids(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert min(ids, default=len(SPECIAL)) >= len(SPECIAL)
    assert TOKENIZER.encode_document(text)[1:-1].tolist() == ids
    assert TOKENIZER.decode(ids) == text


def test_delimiters_vanish_in_decoding() -> None:
    ids = [TOKENIZER.bos, *TOKENIZER.encode("tide"), TOKENIZER.eos, TOKENIZER.pad]
    assert TOKENIZER.decode(ids) == "tide"


def test_special_tokens_have_the_first_ids_and_all_ids_are_below_the_size() -> None:
    assert (TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.pad) == (0, 1, 2)
    assert len(SPECIAL) + 256 < TOKENIZER.vocabulary_size <= 400
    assert max(TOKENIZER.encode("".join(TEXTS))) < TOKENIZER.vocabulary_size


def test_the_ids_of_special_tokens_never_change() -> None:
    """They are in the shards of every corpus: new ones take the place of spare ones."""
    assert SPECIAL[:14] == (
        *("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"),
        *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
        *("<|repo_name|>", "<|file_sep|>"),
        *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    )
    assert len(set(SPECIAL)) == 32


def test_the_least_vocabulary_has_special_tokens_and_bytes_the_largest_has_256_k() -> None:
    least = len(SPECIAL) + 256
    tokenizer = Tokenizer.train(TEXTS, Corpus(directory="x", vocabulary_size=least).vocabulary_size)
    assert tokenizer.vocabulary_size == least
    assert tokenizer.decode(tokenizer.encode("海は深い")) == "海は深い"
    assert Corpus(directory="x", vocabulary_size=262_144)
    for size in (least - 1, 262_145):
        with pytest.raises(ValueError, match="vocabulary_size"):
            Corpus(directory="x", vocabulary_size=size)


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
    with pytest.raises(CorpusError, match="does not begin with the 32 special tokens"):
        Tokenizer.from_bytes(data)


def test_a_tokenizer_that_cuts_words_otherwise_is_refused() -> None:
    core = reference(TOKENIZER)
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    with pytest.raises(CorpusError, match="cuts words in another way"):
        Tokenizer.from_bytes(core.to_str().encode())


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


def test_an_image_takes_its_positions_and_its_delimiters() -> None:
    assert len(ids_of_image(5)) == 5 + IMAGE_DELIMITERS
