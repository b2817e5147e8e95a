"""Language identification: a text comes in, the code of its language and a confidence come out.

CLD2, whose tables of 165 languages ship inside the package pycld2, or a fastText model that the
operator supplies. Both answer in one set of codes: BCP 47, the two-letter code of ISO 639-1 where
there is one. What is too short, too mixed or in no known language is UNDETERMINED.

CLD2 looks at the script first, then at pieces of words (naive Bayes on 4-grams, single letters for
Chinese and Japanese): https://github.com/CLD2Owners/cld2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pycld2

from panthalassa.corpus.lists import read_pairs
from panthalassa.corpus.normalise import drop_not_text
from panthalassa.errors import CorpusError

UNDETERMINED: Final = "und"
THRESHOLD: Final = 0.5
"""Below this confidence a text is UNDETERMINED: less than half of it, or no reliable answer."""

SAMPLE: Final = 1 << 14
"""Characters that are looked at in a long text: at its beginning, its middle and its end, each."""


@dataclass(frozen=True)
class Language:
    """`confidence` is in 0 … 1. CLD2: the share of the text (bytes) in this language, halved when
    it calls its answer unreliable; fastText: the model's probability."""

    code: str
    confidence: float


Identify = Callable[[str], Language]
"""Identifies any string, also one with control characters or lone surrogates; never raises."""

# CLD2's names for no language, and for scripts in which it knows none: the language they stand for.
_CLD2_CODES = {
    "un": UNDETERMINED, "zzp": UNDETERMINED,
    "xx-Bugi": "bug", "xx-Cakm": "ccp", "xx-Copt": "cop", "xx-Goth": "got", "xx-Java": "jv",
    "xx-Mtei": "mni", "xx-Nkoo": "nqo", "xx-Olck": "sat", "xx-Samr": "smp", "xx-Saur": "saz",
    "xx-Sund": "su", "xx-Tavt": "blt", "xx-Tfng": "zgh", "xx-Vaii": "vai", "xx-Yiii": "ii",
}  # fmt: skip


def identify(text: str, threshold: float = THRESHOLD) -> Language:
    """The main language of the text by CLD2."""
    plain = drop_not_text(_sample(text))  # CLD2 refuses it
    reliable, _, found = pycld2.detect(plain.encode(), isPlainText=True)
    _, name, percent, _ = found[0]
    code = _CLD2_CODES.get(name, UNDETERMINED if name.startswith("xx") else canonical(name))
    return _decide(code, percent / 100 * (1 if reliable else 0.5), threshold)


def open_identifier(model: str | None = None, threshold: float = THRESHOLD) -> Identify:
    """CLD2, or the fastText model in the file `model`. The result can be sent to other processes.

    Raises CorpusError when the package fasttext or the file is missing, or is no model.
    """
    if model is None:
        return Cld2(threshold)
    _load_fasttext(model)
    return FastText(model, threshold)


@dataclass(frozen=True)
class Cld2:
    """`identify` with a threshold of its own."""

    threshold: float

    def __call__(self, text: str) -> Language:
        return identify(text, self.threshold)


@dataclass(frozen=True)
class FastText:
    """A supervised fastText model whose labels are languages: lid.176, GlotLID and their like."""

    path: str
    threshold: float

    def __call__(self, text: str) -> Language:
        line = " ".join(drop_not_text(_sample(text)).split())  # fastText reads one line
        # `.f` is the C++ object: the Python around it does not work with NumPy 2 (fasttext 0.9.3).
        found = _load_fasttext(self.path).f.predict(f"{line}\n", 1, 0.0, "strict")
        if not line or not found:
            return Language(UNDETERMINED, 0.0)
        probability, label = found[0]
        return _decide(canonical(label.removeprefix("__label__")), probability, self.threshold)


def canonical(label: str) -> str:
    """The code of a label such as `eng_Latn`, `iw` or `zh-Hant`: `en`, `he`, `zh-Hant`.

    ISO 639-3 becomes 639-1. What follows an underscore is dropped: it names the script always, where
    BCP 47 does so only when it tells something.
    """
    language, *subtags = label.partition("_")[0].split("-")
    return "-".join([read_pairs("iso639.txt").get(language, language), *subtags])


@cache
def _load_fasttext(path: str) -> Any:
    """One a process: a model has up to 2 GB."""
    try:
        import fasttext
    except ImportError:
        raise CorpusError(
            f"the language model {path} needs the package fasttext, which is not installed. "
            "Install it on every node (pip install fasttext), or unset the model to take CLD2."
        ) from None
    if not Path(path).is_file():
        raise CorpusError(
            f"language model {path} is no file on this machine. Put it there on every node, or "
            "unset the model to take CLD2."
        )
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise CorpusError(
            f"language model {path} is no fastText model: {error}. Download it again, or unset the "
            "model to take CLD2."
        ) from error


def _sample(text: str) -> str:
    if len(text) <= 3 * SAMPLE:
        return text
    middle = (len(text) - SAMPLE) // 2
    return f"{text[:SAMPLE]} {text[middle : middle + SAMPLE]} {text[-SAMPLE:]}"


def _decide(code: str, confidence: float, threshold: float) -> Language:
    known = code != UNDETERMINED and confidence >= threshold
    return Language(code if known else UNDETERMINED, min(1.0, max(0.0, float(confidence))))
