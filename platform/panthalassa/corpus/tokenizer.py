"""The tokenizer: text comes in, token ids go out, and the same text comes back.

Byte-level BPE over Hugging Face `tokenizers`. Every text can be encoded, for what has no token of
its own is spelled in bytes, and `decode(encode(text)) == text`. Unicode is normalised (NFC) when a
corpus is cleaned and not here. Text is never trusted: a document that contains the characters
`<|bos|>` gets ordinary tokens, so delimiters come only from `bos` and `eos` below.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from panthalassa.corpus.manifest import TOKENIZER, Manifest
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")

# Merges never cross these words. Marks (\p{M}) count as letters: the vowel signs of Thai, Khmer,
# Burmese and the Indic scripts would otherwise break every word. Symbols are kept from letters, so
# that no merge can spell a special token.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer:
    """A trained vocabulary; `bos`, `eos` and `pad` are the ids of its special tokens."""

    bos: Final = 0
    eos: Final = 1
    pad: Final = 2

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        if tuple(core.id_to_token(index) for index in range(len(SPECIAL))) != SPECIAL:
            raise CorpusError(
                f"the tokenizer does not begin with the special tokens {', '.join(SPECIAL)}; "
                "prepare the corpus anew into an empty folder."
            )
        # Not part of the serialised form, hence set whenever one is made.
        core.encode_special_tokens = True
        self._core = core

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> "Tokenizer":
        """Learn a vocabulary of `vocabulary_size` tokens, or fewer when the texts are too little.

        The result depends on the texts, not on their order.
        """
        core = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        return cls(core)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tokenizer":
        """Inverse of `to_bytes`. Raises CorpusError when `data` is no tokenizer."""
        try:
            core = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the Rust library raises bare Exceptions
            raise CorpusError(
                f"{TOKENIZER} is not a tokenizer: {error}. Prepare the corpus anew."
            ) from error
        return cls(core)

    def to_bytes(self) -> bytes:
        """A `tokenizer.json` as Hugging Face libraries read it."""
        return str(self._core.to_str(pretty=True)).encode()

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included; ids are 0 … vocabulary_size - 1."""
        return int(self._core.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone, without delimiters."""
        return list(self._core.encode(text).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._core.encode_batch_fast(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; delimiters vanish, and bytes that are no UTF-8 become U+FFFD."""
        return str(self._core.decode(list(ids), skip_special_tokens=True))


def read_tokenizer(storage: Storage, manifest: Manifest) -> Tokenizer:
    """The corpus's tokenizer. Raises CorpusError when it is missing or not what its hash says."""
    place = f"{storage.uri}/{TOKENIZER}"
    try:
        data = storage.read(TOKENIZER, manifest.tokenizer_sha256)
    except OSError as error:
        raise CorpusError(
            f"tokenizer {place} can not be read: {error}. "
            "Restore the file or prepare the corpus anew."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.tokenizer_sha256:
        raise CorpusError(
            f"tokenizer {place} is corrupt: SHA-256 is {found}, the manifest says "
            f"{manifest.tokenizer_sha256}. Restore the file or prepare the corpus anew."
        )
    return Tokenizer.from_bytes(data)
