"""The tokenizer of a model from elsewhere: any `tokenizer.json` of Hugging Face, and files beside it.

Its ids are those of `transformers`, but a text is never trusted: one that spells a special token gets
ordinary ones. In a chat a special token is found as it is spelled, also where `tokenizer.json` calls it
`normalized` and a normalizer puts a space in front: `transformers` finds it only behind such a space.
Its files are kept as they are, so that an export gives them back.
"""

import copy
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
from panthalassa.corpus.rust_errors import rust_errors
from panthalassa.corpus.text_tokenizer import Place, Special
from panthalassa.corpus.tokenizer_files import GENERATION, TEMPLATE, Around, read_around
from panthalassa.errors import ChatError, ConfigError

LONGEST_CONTEXT = 16
"""Ids before a continuation that its first characters may depend on."""
LONGEST_HELD = 16
"""Ids that may wait for the end of a character."""
LONGEST_CHARACTER = 4
"""Bytes of a character, each of which may be an id of its own."""
MANY_FOUND = 1024
"""Texts of a chat's format of which the special tokens are remembered."""
REPLACEMENT = "\ufffd"
RARE = "\U0010fffd"
"""A character that no vocabulary has: one that makes nothing of it fails in the middle of a text."""


class PretrainedTokenizer:
    """Made of `files` by name, which are those of the folder `place`, for errors.

    Where there is no chat template it is `chat_template.DEFAULT`. Rows are filled with `eos` where there
    is no token for that. Raises ConfigError for files that contradict each other, and when no token ends
    a text.
    """

    def __init__(self, files: Mapping[str, bytes], place: str) -> None:
        self._files = dict(files)
        self._place = f"{place}/{TOKENIZER}"
        content = _content(files[TOKENIZER], self._place)
        around = read_around(files, place)
        with rust_errors(self._no_tokenizer):
            self._core, first = _loaded(content)
            self._tokens, ids = _special(self._core, around, place)
            self._special = _specials(self._core, self._place)
            self.vocabulary_size = max(self._core.get_vocab().values()) + 1
            self._never = self._special - _unknown(self._core, content["model"], ids)
        self.bos = ids.get("bos_token")
        self.eos = ids["eos_token"]
        self.pad = ids.get("pad_token", self.eos)
        self._ends = [self.eos, *around.ends]
        begins = self.bos in first if around.add_bos is None else around.add_bos
        self.beginning = (self.bos,) if begins and self.bos is not None else ()
        self.chat: ChatFormat = ChatTemplate(around.template, around.template_place, self._tokens)
        if not around.given:
            self._files[TEMPLATE] = around.template.encode()
        self._steps = {where: json.dumps(_steps(content, where)) for where in Place}
        self._plain: dict[str, tokenizers.Tokenizer] = {}
        """Those for texts, by their steps, each made when it is needed first."""
        self._found: dict[str, list[Special]] = {}

    def files(self) -> dict[str, bytes]:
        return dict(self._files)

    def encode(self, text: str, place: Place = Place.START) -> list[int]:
        """Raises ConfigError when the library fails on the text."""
        text = _whole(text)
        core = self._plain_at(place)
        with rust_errors(self._no_ids):
            found = core.encode(text, add_special_tokens=False)
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
            if len(self._found) >= MANY_FOUND:
                self._found.clear()
            with rust_errors(self._no_ids):
                found = self._core.encode(text, add_special_tokens=False)
            self._found[text] = [
                Special(id, *span)
                for id, span in zip(found.ids, found.offsets, strict=True)
                if id in self._special
            ]
        return self._found[text]

    def _plain_at(self, place: Place) -> tokenizers.Tokenizer:
        steps = self._steps[place]
        if steps not in self._plain:
            content = _content(self._files[TOKENIZER], self._place)
            with rust_errors(self._no_tokenizer):
                self._plain[steps] = _plain({**content, **json.loads(steps)}, self._tokens)
        return self._plain[steps]

    def _no_tokenizer(self, error: BaseException) -> ConfigError:
        return ConfigError(
            f"{self._place} is not a tokenizer: {error}. Copy that of the model there."
        )

    def _no_ids(self, error: BaseException) -> ConfigError:
        return ConfigError(
            f"{self._place} makes no ids of a text: {error}. Leave that text out, or copy the tokenizer "
            "of the model there."
        )

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
        self._ids = _context(tokenizer, before)
        self._shown = tokenizer.decode(self._ids)
        """Of the text of `_ids`, what was given."""
        self._told = len(self._ids)
        """How many ids that is the text of."""

    def add(self, id: int) -> str:
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids)
        if not text.endswith(REPLACEMENT):
            return self._piece(text)
        if len(self._ids) - self._told < LONGEST_HELD:
            return ""
        return self._piece(text, unsure=1)  # its last bytes may be the first ones of a character

    def end(self) -> str:
        return self._piece(self._tokenizer.decode(self._ids))

    def _piece(self, text: str, unsure: int = 0) -> str:
        """What is new in the text but for its last `unsure` characters."""
        piece = text[len(self._shown) : len(text) - unsure]
        if piece:
            self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
            shown = self._tokenizer.decode(self._ids)
            self._shown = shown[: len(shown) - unsure]
        return piece


def _context(tokenizer: PretrainedTokenizer, before: Sequence[int]) -> list[int]:
    """The last ids, from where a character begins: bytes that are cut spoil those behind them."""
    cuts = range(LONGEST_CONTEXT, LONGEST_CONTEXT + LONGEST_CHARACTER)
    found = (list(before[-length:]) for length in cuts)
    return min(found, key=lambda ids: tokenizer.decode(ids).count(REPLACEMENT))


def _content(data: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place} is no tokenizer")
    # Whoever encodes puts `bos` in front, and cuts and fills.
    return {**found, "truncation": None, "padding": None}


def _loaded(content: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, list[int]]:
    """The tokenizer without what it puts around texts, and the first id that it puts there, if any."""
    core = tokenizers.Tokenizer.from_str(json.dumps(content))
    core.encode(RARE, add_special_tokens=True)
    first = core.encode("", add_special_tokens=True).ids[:1]
    core.post_processor = None
    return core, first


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
    for id in around.ends:
        if core.id_to_token(id) is None:
            raise ConfigError(
                f"{place}/{GENERATION}: eos_token_id is {id}, and {TOKENIZER} has no such token. Copy "
                "files that belong together there."
            )
    if "eos_token" not in ids:
        raise ConfigError(
            f"{place}: no file says which token ends a text. Write it as eos_token into "
            "tokenizer_config.json."
        )
    _make_special(core, tokens)
    return tokens, ids


def _specials(core: tokenizers.Tokenizer, place: str) -> set[int]:
    """The ids of all special tokens."""
    special = {id: token for id, token in core.get_added_tokens_decoder().items() if token.special}
    if words := [token.content for token in special.values() if token.single_word]:
        raise ConfigError(
            f"{place}: {words[0]!r} is special and single_word, but in a chat it stands beside words. "
            "Write false there."
        )
    return set(special)


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


def _plain(content: Mapping[str, Any], tokens: Mapping[str, str]) -> tokenizers.Tokenizer:
    """Makes ordinary tokens of all that it is given."""
    core, _ = _loaded(content)
    _make_special(core, tokens)
    core.encode_special_tokens = True
    return core


def _steps(content: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Normalizer and pre-tokenizer for a text at a place: with the space that SentencePiece puts in
    front, or not."""
    found = {step: copy.deepcopy(content.get(step)) for step in ("normalizer", "pre_tokenizer")}
    for part in chain(*map(_parts, found.values())):
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


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Those of a normalizer or a pre-tokenizer."""
    whole = step or {}
    return list(whole.get("normalizers") or whole.get("pretokenizers") or [whole])


def _whole(text: str) -> str:
    """Lone surrogates, which are no characters, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
