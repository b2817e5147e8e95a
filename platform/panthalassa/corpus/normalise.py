"""Unicode normalisation: any string comes in, clean NFC text comes out.

Encoding errors (UTF-8 that was read as Latin-1 or the like) are repaired by ftfy, which is slow, so
only lines that show the traces of one are given to it. Nothing is changed that carries meaning:
joiners (Persian, Indic scripts, emoji), word spaces of Khmer, non-breaking spaces, ligatures stay.
"""

import re
import unicodedata
from typing import Final

from ftfy import TextFixerConfig, fix_text

from panthalassa.corpus.scripts import has_astral

# The bytes 80 … BF of UTF-8 as Windows-1252, or Latin-1, shows them.
_CONTINUATION = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
# One set of characters at the front: so the search runs ahead to them several times as fast.
_ENCODING_ERROR = re.compile(
    rf"[\x80-\x9fÂ-ô](?:(?<=[\x80-\x9f])|(?<=[Â-ß]){_CONTINUATION}"
    rf"|(?<=[à-ï]){_CONTINUATION}{{2}}|(?<=[ð-ô]){_CONTINUATION}{{3}})"
)

_ENCODING_ONLY: Final = TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)

_LINE_BREAK = re.compile("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

# Not text: controls (line breaks and tabs apart), surrogates, noncharacters, the byte-order mark,
# and the soft hyphen, which is of one layout.
_NOT_TEXT = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_NOT_TEXT_ASTRAL = re.compile(  # apart, for the search of so many single characters is slow
    f"[{''.join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))}]+"
)
_EMPTY_LINES = re.compile(r"\n\n\n+")


def normalise(text: str) -> str:
    """The text in NFC, with `\\n` for line breaks, without controls and halves of surrogate pairs.

    At most one empty line stays in a row; space at the ends of lines and of the text goes. What is
    normalised already comes back unchanged. Any string will do.
    """
    before, text = text, _normalise_once(text)
    while text != before and has_encoding_error(text):
        before, text = text, _normalise_once(text)
    return text


def _normalise_once(text: str) -> str:
    if has_encoding_error(text):
        lines = text.split("\n")
        text = "\n".join(_repair(line) if has_encoding_error(line) else line for line in lines)
    text = drop_not_text(_LINE_BREAK.sub("\n", text.replace("\r\n", "\n")))
    text = unicodedata.normalize("NFC", text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _repair(line: str) -> str:
    return fix_text(line, _ENCODING_ONLY)


def drop_not_text(text: str) -> str:
    """The text without controls, halves of surrogate pairs and noncharacters."""
    if _NOT_TEXT.search(text):
        text = _NOT_TEXT.sub("", text)
    return _NOT_TEXT_ASTRAL.sub("", text) if has_astral(text) else text


def has_encoding_error(text: str) -> bool:
    """Whether a sequence occurs that UTF-8 shows when it is read as another encoding.

    Some are ordinary (`É…`): ftfy decides, and leaves those alone.
    """
    return not text.isascii() and _ENCODING_ERROR.search(text) is not None
