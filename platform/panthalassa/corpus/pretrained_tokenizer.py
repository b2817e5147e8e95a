"""The tokenizer of a model from elsewhere: any `tokenizer.json` of Hugging Face, and files beside it.

Its ids are those of `transformers`, but a text is never trusted: one that spells a special token gets
ordinary ones. Its files are kept as they are, so that an export gives them back.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import tokenizers
from tokenizers import AddedToken

from panthalassa.corpus.chat_format import ChatFormat
from panthalassa.corpus.chat_template import ChatTemplate
from panthalassa.corpus.manifest import TOKENIZER
from panthalassa.corpus.text_tokenizer import Place, Special
from panthalassa.corpus.tokenizer_files import TEMPLATE, Around, read_around
from panthalassa.errors import ChatError, ConfigError

LONGEST_CONTEXT = 16
"""Ids before a continuation that its first characters may depend on."""
REPLACEMENT = "\ufffd"


class PretrainedTokenizer:
    """Made of `files` by name, which are those of the folder `place`, for errors.

    Where there is no chat template it is `chat_template.DEFAULT`. Rows are filled with `eos` where there
    is no token for that. Raises ConfigError for files that contradict each other, and when no token ends
    a text.
    """

    def __init__(self, files: Mapping[str, bytes], place: str) -> None:
        self._files = dict(files)
        content = _content(files[TOKENIZER], f"{place}/{TOKENIZER}")
        core = _core(json.dumps(content), place)
        around = read_around(files, place)
        tokens, ids = _special(core, around, place)
        self._special = {
            id for id, token in core.get_added_tokens_decoder().items() if token.special
        }
        self._never = self._special - _unknown(core, content["model"], ids)
        self.bos = ids.get("bos_token")
        self.eos = ids["eos_token"]
        self.pad = ids.get("pad_token", self.eos)
        self._ends = [self.eos, *around.ends]
        self.vocabulary_size = max(core.get_vocab().values()) + 1
        first = core.encode("", add_special_tokens=True).ids[:1]
        begins = self.bos in first if around.add_bos is None else around.add_bos
        self.beginning = (self.bos,) if begins and self.bos is not None else ()
        self.chat: ChatFormat = ChatTemplate(around.template, around.template_place, tokens)
        if not around.given:
            self._files[TEMPLATE] = around.template.encode()
        placed = {where: json.dumps(_placed(content, where)) for where in Place}
        plain = {text: _plain(_core(text, place), tokens) for text in set(placed.values())}
        self._cores = {where: plain[text] for where, text in placed.items()}
        self._core = core
        self._core.post_processor = None
        self._found: dict[str, list[Special]] = {}

    def files(self) -> dict[str, bytes]:
        return dict(self._files)

    def encode(self, text: str, place: Place = Place.START) -> list[int]:
        text = _whole(text)
        found = self._cores[place].encode(text, add_special_tokens=False)
        ids: list[int] = found.ids
        if self._never.isdisjoint(ids):
            return ids
        # A vocabulary may have special tokens among its ordinary words: each such word is cut in two.
        spans = [span for id, span in zip(ids, found.offsets, strict=True) if id in self._never]
        cuts = [start + 1 for start, end in spans if start + 1 < end]
        if not cuts:
            return [id for id in ids if id not in self._never]
        first, *others = (text[start:end] for start, end in pairwise([0, *cuts, len(text)]))
        return [*self.encode(first, place), *chain(*(self.encode(o, Place.WITHIN) for o in others))]

    def find_special(self, text: str) -> Sequence[Special]:
        if text not in self._found:
            found = self._core.encode(text, add_special_tokens=False)
            self._found[text] = [
                Special(id, *span)
                for id, span in zip(found.ids, found.offsets, strict=True)
                if id in self._special
            ]
        return self._found[text]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._core.decode(list(ids), skip_special_tokens=True))

    def decoder(self, before: Sequence[int] = ()) -> "PretrainedDecoder":
        return PretrainedDecoder(self, before)

    @cached_property
    def ends(self) -> Sequence[int]:
        """Those that the files name, and what ends a turn by the chat template, if it can be used."""
        with suppress(ChatError):
            *_, last = self.chat.whole((("user", True), ("assistant", True))).pieces or ("",)
            if isinstance(last, str) and (special := self.find_special(last)):
                return tuple(dict.fromkeys([*self._ends, special[0].id]))
        return tuple(dict.fromkeys(self._ends))


class PretrainedDecoder:
    """Ids become text in the light of those before them: what a few ids say is what they add to that."""

    def __init__(self, tokenizer: PretrainedTokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-LONGEST_CONTEXT:])
        self._shown = tokenizer.decode(self._ids)
        """Of the text of `_ids`, what was given."""
        self._told = len(self._ids)
        """How many ids that is the text of."""

    def add(self, id: int) -> str:
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith(REPLACEMENT) else self._piece(text)

    def end(self) -> str:
        return self._piece(self._tokenizer.decode(self._ids))

    def _piece(self, text: str) -> str:
        piece = text[len(self._shown) :]
        if piece:
            self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
            self._shown = self._tokenizer.decode(self._ids)
        return piece


def _content(data: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place} is no tokenizer")
    # Whoever encodes puts `bos` in front, and cuts and fills.
    return {**found, "truncation": None, "padding": None}


def _core(content: str, place: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise ConfigError(
            f"{place}/{TOKENIZER} is not a tokenizer: {error}. Copy that of the model there."
        ) from error


def _special(
    core: tokenizers.Tokenizer, around: Around, place: str
) -> tuple[dict[str, str], dict[str, int]]:
    """Texts and ids of the named special tokens, which are special in `core` from here on."""
    tokens, ids = dict(around.tokens), {}
    for name, id in around.ids.items():
        if name not in tokens and (token := core.id_to_token(id)) is not None:
            tokens[name] = token
    for name, token in tokens.items():
        if (found := core.token_to_id(token)) is None:
            raise ConfigError(
                f"{place}: {name} is {token!r}, and {TOKENIZER} has no such token. Copy files that "
                "belong together there."
            )
        ids[name] = found
    if "eos_token" not in ids:
        raise ConfigError(
            f"{place}: no file says which token ends a text. Write it as eos_token into "
            "tokenizer_config.json."
        )
    _make_special(core, tokens)
    return tokens, ids


def _unknown(
    core: tokenizers.Tokenizer, model: Mapping[str, Any], ids: Mapping[str, int]
) -> set[int | None]:
    """What stands for characters that a vocabulary lacks, and so may be in any text."""
    spelled = model.get("unk_token")
    found = core.token_to_id(spelled) if spelled else model.get("unk_id")
    return {found, ids.get("unk_token")}


def _make_special(core: tokenizers.Tokenizer, tokens: Mapping[str, str]) -> None:
    known = {token.content: token for token in core.get_added_tokens_decoder().values()}
    for text in tokens.values():
        if text not in known or not known[text].special:
            core.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _plain(core: tokenizers.Tokenizer, tokens: Mapping[str, str]) -> tokenizers.Tokenizer:
    """Makes ordinary tokens of all that it is given."""
    _make_special(core, tokens)
    core.post_processor = None
    core.encode_special_tokens = True
    return core


def _placed(content: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The tokenizer for a text at a place: with the space that SentencePiece puts in front, or not."""
    found = dict(content)
    for step in ("normalizer", "pre_tokenizer"):
        found[step] = json.loads(json.dumps(content.get(step)))
    for part in [*_parts(found, "normalizer"), *_parts(found, "pre_tokenizer")]:
        if part.get("type") == "Metaspace" and (
            place is Place.WITHIN
            or (place is Place.BEHIND_SPECIAL and part.get("prepend_scheme") == "first")
        ):
            part["prepend_scheme"] = "never"
        if part.get("type") == "Prepend" and place is Place.WITHIN:
            part["prepend"] = ""
        if part.get("type") == "ByteLevel" and place is Place.WITHIN:
            part["add_prefix_space"] = False
    return found


def _parts(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    whole = content.get(key) or {}
    return list(whole.get("normalizers") or whole.get("pretokenizers") or [whole])


def _whole(text: str) -> str:
    """Lone surrogates, which are no characters, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
