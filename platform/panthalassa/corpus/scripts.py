"""Scripts and words: a text comes in, the writing systems it uses and its words come out.

The one idea: a word is what white space delimits, except in scripts that put none between words,
where each letter with its marks is a word of its own. So one split, at the speed of `str.split` for
most of the world's text, serves every rule of cleaning; `units_per_word` tells the rules how many
such units make a word of the language.

Scripts are ISO 15924 codes, derived from the names of Unicode characters.
"""

import re
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "Zyyy"  # no letters at all
SAMPLE = 1 << 16  # characters by which the script of a long text is judged

_BY_NAME = {
    "ADLAM": "Adlm", "ARABIC": "Arab", "ARMENIAN": "Armn", "BALINESE": "Bali", "BAMUM": "Bamu",
    "BENGALI": "Beng", "BOPOMOFO": "Bopo", "BUGINESE": "Bugi", "CANADIAN": "Cans", "CHAKMA": "Cakm",
    "CHAM": "Cham", "CHEROKEE": "Cher", "CJK": "Hani", "COPTIC": "Copt", "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva", "ETHIOPIC": "Ethi", "GEORGIAN": "Geor", "GOTHIC": "Goth",
    "GRANTHA": "Gran", "GREEK": "Grek", "GUJARATI": "Gujr", "GURMUKHI": "Guru", "HANGUL": "Hang",
    "HEBREW": "Hebr", "HIRAGANA": "Hira", "JAVANESE": "Java", "KANNADA": "Knda", "KATAKANA": "Kana",
    "KHMER": "Khmr", "LAO": "Laoo", "LATIN": "Latn", "LIMBU": "Limb", "LISU": "Lisu",
    "MALAYALAM": "Mlym", "MEETEI": "Mtei", "MONGOLIAN": "Mong", "MYANMAR": "Mymr", "NEW TAI": "Talu",
    "NKO": "Nkoo", "OL CHIKI": "Olck", "ORIYA": "Orya", "SINHALA": "Sinh", "SUNDANESE": "Sund",
    "SYRIAC": "Syrc", "TAGALOG": "Tglg", "TAI LE": "Tale", "TAI THAM": "Lana", "TAI VIET": "Tavt",
    "TAMIL": "Taml", "TELUGU": "Telu", "THAANA": "Thaa", "THAI": "Thai", "TIBETAN": "Tibt",
    "TIFINAGH": "Tfng", "VAI": "Vaii", "YI": "Yiii",
}  # fmt: skip
SCRIPTS = (UNKNOWN, *sorted(set(_BY_NAME.values())))

# Units of the Universal Declaration over its 1,500 words in most languages, rounded.
_UNITS_PER_WORD = {
    "Bopo": 2, "Hani": 2, "Hira": 2, "Kana": 2, "Tibt": 2, "Yiii": 2,
    "Lana": 3, "Mymr": 3, "Tale": 3, "Talu": 3, "Tavt": 3, "Vaii": 3,
    "Bali": 4, "Java": 4, "Khmr": 4, "Laoo": 4, "Thai": 4,
}  # fmt: skip

# The blocks of those scripts (Unicode, Blocks.txt), for the split.
_UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua4cf\ua500-\ua63f\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
)
_UNSPACED_ASTRAL = "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
_SEPARATORS = "\u0f0b\u0f0c\u1361\u200b"  # tsheg, Ethiopic word space, zero-width space


@cache
def _pattern() -> re.Pattern[str]:
    marks = "".join(
        chr(code)
        for code in range(0x0E01, 0x10000)
        if unicodedata.category(chr(code)).startswith("M")
    )
    return re.compile(
        rf"[{_UNSPACED}{_UNSPACED_ASTRAL}][{re.escape(marks)}\u200c\u200d]*"
        rf"|[^\s{_UNSPACED}{_UNSPACED_ASTRAL}{_SEPARATORS}]+"
    )


_NOT_SPACED = re.compile(f"[{_UNSPACED}{_SEPARATORS}]")
_NOT_SPACED_ASTRAL = re.compile(f"[{_UNSPACED_ASTRAL}]")


def has_astral(text: str) -> bool:
    """Whether a character is beyond U+FFFF. Those are searched for apart, where there are any: a set
    of characters that has some is searched for slowly."""
    return len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)


def is_spaced(text: str) -> bool:
    """Whether white space alone delimits the words of the text."""
    if text.isascii():
        return True
    if _NOT_SPACED.search(text):
        return False
    return not (has_astral(text) and _NOT_SPACED_ASTRAL.search(text))


def split_words(text: str) -> list[str]:
    """The words with their punctuation; letters with their marks in scripts without spaces."""
    return text.split() if is_spaced(text) else _pattern().findall(text)


def units_per_word(script: str) -> int:
    """How many items of `split_words` a word has on average: 1 where spaces delimit words."""
    return _UNITS_PER_WORD.get(script, 1)


def code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def dominant_script(text: str) -> str:
    """The script of most letters in the first SAMPLE characters; UNKNOWN when there are none."""
    counts = np.bincount(_script_table()[code_points(text[:SAMPLE])], minlength=len(SCRIPTS))
    counts[0] = 0
    return SCRIPTS[int(counts.argmax())]


def contains_letter(word: str) -> bool:
    """Whether a letter is in the word. Marks do not count: they never stand alone."""
    return word[:1].isalpha() or any(map(str.isalpha, word))


@cache
def _script_table() -> NDArray[np.uint8]:
    """For every code point its index in SCRIPTS; 0 for what belongs to none."""
    table = np.zeros(0x110000, dtype=np.uint8)
    numbers = {script: number for number, script in enumerate(SCRIPTS)}
    for code in range(0x20000):
        if (character := chr(code)).isalpha():
            words = unicodedata.name(character, "").split(" ", 2)
            script = _BY_NAME.get(words[0]) or _BY_NAME.get(" ".join(words[:2]))
            table[code] = numbers.get(script or UNKNOWN, 0)
    table[0x20000:0x40000] = numbers["Hani"]  # the two planes of ideographs
    return table
