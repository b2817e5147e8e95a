"""The tokenizer: text comes in, token ids go out, and the same text comes back.

Byte-level BPE, trained by Hugging Face `tokenizers`, whose file it is kept in, and encoded by
`tiktoken`, which gives the same ids several times as fast. Every text can be encoded, for what has no
token of its own is spelled in bytes, and `decode(encode(text)) == text`. Unicode is normalised (NFC)
when a corpus is cleaned and not here. Text is never trusted: a document that contains the characters
`<|bos|>` gets ordinary tokens; special ones come from their ids alone.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import tiktoken
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from panthalassa.corpus.chat_format import ChatFormat, ChatML
from panthalassa.corpus.manifest import TOKENIZER, Manifest
from panthalassa.corpus.pretrained_tokenizer import PretrainedTokenizer
from panthalassa.corpus.rust_errors import rust_errors
from panthalassa.corpus.text_tokenizer import Place, Special, TextTokenizer
from panthalassa.errors import ConfigError, CorpusError
from panthalassa.storage import Storage

Tokens = NDArray[np.int32]

DELIMITERS = ("<|bos|>", "<|eos|>", "<|pad|>")
CHAT = ("<|im_start|>", "<|im_end|>")  # ChatML
CODE = (  # filling in the middle: Bavarian et al. 2022, in the spelling of StarCoder 2
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
IMAGES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SPARE = tuple(f"<|reserved_{number}|>" for number in range(18))

SPECIAL = DELIMITERS + CHAT + CODE + IMAGES + SPARE
"""The first tokens of every vocabulary: the place of one here is its id."""
SPELLED = re.compile("|".join(map(re.escape, SPECIAL)))

# Merges never cross these words. Marks (\p{M}) count as letters: the vowel signs of Thai, Khmer,
# Burmese and the Indic scripts would otherwise break every word. Symbols are kept from letters, so
# that no merge can spell a special token. Without a bound on white space, the search for its end goes
# back and forth, and ends tiktoken with an overflow at a million spaces.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s{1,128}(?!\S)|\s"


class Tokenizer:
    """A trained vocabulary; `bos`, `eos` and `pad` are the ids of its delimiters, `turn_start` and
    `turn_end` those around a message of a chat. One of `ends` ends what a model says. `image` stands at
    each position of an image, between `image_start` and `image_end`."""

    bos: Final = SPECIAL.index("<|bos|>")
    eos: Final = SPECIAL.index("<|eos|>")
    pad: Final = SPECIAL.index("<|pad|>")
    turn_start: Final = SPECIAL.index("<|im_start|>")
    turn_end: Final = SPECIAL.index("<|im_end|>")
    ends: Final = (eos, turn_end)
    image_start: Final = SPECIAL.index("<|vision_start|>")
    image_end: Final = SPECIAL.index("<|vision_end|>")
    image: Final = SPECIAL.index("<|image_pad|>")
    beginning: Final = (bos,)
    chat: Final[ChatFormat] = ChatML()

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        if tuple(core.id_to_token(index) for index in range(len(SPECIAL))) != SPECIAL:
            raise CorpusError(
                f"the tokenizer does not begin with the {len(SPECIAL)} special tokens "
                f"{SPECIAL[0]} … {SPECIAL[-1]}; prepare the corpus anew into an empty folder."
            )
        if core.normalizer or _written(core.pre_tokenizer) != _written(_words_as_bytes()):
            raise CorpusError(
                "the tokenizer cuts words in another way than this version does; "
                "prepare the corpus anew into an empty folder."
            )
        core.post_processor = None  # an export has one, which puts `bos` in front
        self._core = core
        # None of the special tokens is ever allowed in a text. They are named all the same, for
        # tiktoken looks for them, and where there are none it finds nothing at every byte.
        special = {token: index for index, token in enumerate(SPECIAL)}
        self._encoding = tiktoken.Encoding(
            TOKENIZER, pat_str=WORDS, mergeable_ranks=_ranks(core), special_tokens=special
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> "Tokenizer":
        """Learn a vocabulary of `vocabulary_size` tokens, or fewer when the texts are too little.

        The result depends on the texts, not on their order.
        """
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = _words_as_bytes()
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
        with rust_errors(_no_tokenizer):
            core = tokenizers.Tokenizer.from_str(data.decode())
        return cls(core)

    def to_bytes(self) -> bytes:
        """A `tokenizer.json` as Hugging Face libraries read it."""
        return str(self._core.to_str(pretty=True)).encode()

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included; ids are 0 … vocabulary_size - 1."""
        return int(self._core.get_vocab_size())

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER: self.to_bytes()}

    def encode(self, text: str, place: Place = Place.START) -> list[int]:
        """The ids of the text alone, without delimiters and wherever it stands; lone surrogates are
        read as U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def find_special(self, text: str) -> Sequence[Special]:
        return [Special(SPECIAL.index(found[0]), *found.span()) for found in SPELLED.finditer(text)]

    def encode_document(self, text: str) -> Tokens:
        """The ids of the text [tokens] between `bos` and `eos`."""
        ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return np.concatenate(([self.bos], ids, [self.eos]), dtype=np.int32, casting="unsafe")

    def bytes_of(self, id: int) -> bytes:
        """The bytes that an id adds to a text: none for a special token, and for what is no id."""
        known = len(SPECIAL) <= id < self.vocabulary_size
        return self._encoding.decode_single_token_bytes(id) if known else b""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens vanish, and bytes that are no UTF-8 become U+FFFD."""
        return str(self._core.decode(list(ids), skip_special_tokens=True))

    def decoder(self, before: Sequence[int] = ()) -> "ByteDecoder":
        return ByteDecoder(self)


class ByteDecoder:
    """Bytes that begin a character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of = tokenizer.bytes_of
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id: int) -> str:
        return self._characters.decode(self._bytes_of(id))

    def end(self) -> str:
        return self._characters.decode(b"", final=True)


def ids_of_image(tokens: int) -> list[int]:
    """The ids of an image that takes so many positions, with those around it."""
    return [Tokenizer.image_start, *[Tokenizer.image] * tokens, Tokenizer.image_end]


def _words_as_bytes() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, as_bytes])


def _written(part: pre_tokenizers.PreTokenizer | None) -> object:
    return json.loads(part.__getstate__()) if part else None


def _ranks(core: tokenizers.Tokenizer) -> dict[bytes, int]:
    """The bytes of each ordinary token, and its id, which is also the rank of its merge.

    Both libraries make the same tokens of a word from that: one knows which pairs merge and in which
    order, the other merges the two neighbours that make the token of the lowest rank. The neighbours
    that make a token are always the pair that it was learned from, for in a word that holds its bytes
    all merges of lower ranks have been made, as they had been when it was learned.
    """
    special = set(SPECIAL)
    return {
        bytes(BYTES[character] for character in token): index
        for token, index in core.get_vocab().items()
        if token not in special
    }


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's `encoder.py`).

    Printable characters of Latin-1 stand for themselves, U+0100 and on for the other bytes in turn.
    """
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(0x100) if byte not in itself]
    characters = [*map(chr, itself), *(chr(0x100 + number) for number in range(len(other)))]
    return dict(zip(characters, itself + other, strict=True))


BYTES = _byte_characters()


def _no_tokenizer(error: BaseException) -> CorpusError:
    return CorpusError(f"{TOKENIZER} is not a tokenizer: {error}. Prepare the corpus anew.")


def open_tokenizer(files: Mapping[str, bytes], place: str) -> TextTokenizer:
    """This platform's tokenizer, or one from elsewhere. files: `tokenizer.json`, and what is beside it;
    place: their folder, for errors. Raises ConfigError."""
    try:
        return Tokenizer.from_bytes(files[TOKENIZER])
    except CorpusError:
        return PretrainedTokenizer(files, place)


def read_tokenizer(storage: Storage, manifest: Manifest) -> TextTokenizer:
    """The corpus's tokenizer. Raises CorpusError when it is missing or not what its hash says."""
    data = _read(storage, TOKENIZER, manifest.tokenizer_sha256)
    if not manifest.tokenizer_files:
        return Tokenizer.from_bytes(data)
    files = {TOKENIZER: data}
    for name, digest in manifest.tokenizer_files.items():
        files[name] = _read(storage, name, digest)
    try:
        return PretrainedTokenizer(files, storage.uri)
    except ConfigError as error:
        raise CorpusError(str(error)) from error


def _read(storage: Storage, name: str, digest: str) -> bytes:
    place = f"{storage.uri}/{name}"
    try:
        data = storage.read(name, digest)
    except OSError as error:
        raise CorpusError(
            f"tokenizer {place} can not be read: {error}. "
            "Restore the file or prepare the corpus anew."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise CorpusError(
            f"tokenizer {place} is corrupt: SHA-256 is {found}, the manifest says "
            f"{digest}. Restore the file or prepare the corpus anew."
        )
    return data
