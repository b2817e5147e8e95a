"""A page of HTML comes in as bytes, its main text and its licence go out, by resiliparse.

Parsing takes time quadratic in the attributes of a tag, extracting in the depth of the tree; what a
page does not close of its formatting is opened again in each paragraph, and each tag takes memory.
A page must not stop a preparation, and a clock must not decide what
a corpus holds: so a page is refused for what it is, before it would take long.
"""

import re

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

TAGS = 500_000
LONG_TAG = 8_000
ATTRIBUTES = 16_000
"""Of tags of more than LONG_TAG characters, together."""
TAGS_TIMES_FORMATTING = 2_000_000
TAGS_TIMES_DEPTH = 10_000_000
DEPTH = 64
"""Tags may always be nested so deep; deeper in a page of few tags."""

TAG = re.compile("<[a-zA-Z]")
BETWEEN_ATTRIBUTES = re.compile(r"""(?:"[^"]*"|'[^']*'|[\s/])+""")
FORMATTING = re.compile(
    r"<(?:b(?:ig)?|code|em|font|i|nobr|s(?:mall|trike|trong)?|tt|u)\b[^<>]*", re.I
)
FORMATTING_OR_END = re.compile(FORMATTING.pattern.replace("<", "<(/?)", 1), re.I)
RUBY = re.compile(r"<r[tp]\b[^<>]*>[^<]*|</?(?:ruby|r[btp])\b[^<>]*>", re.I)
"""How characters are read aloud, inside of words, and the tags around both; the characters remain."""


def main_text(html: bytes, charset: str | None = None) -> tuple[str, str | None]:
    """The main text of a page, by resiliparse's heuristics, and its `rel=license`.

    Raises ValueError for a page that would take minutes or gigabytes.
    """
    page = decoded(html, charset)
    tags = page.count("<")
    _refuse_to_parse(page, tags)
    tree = HTMLTree.parse(RUBY.sub("", page))
    document = tree.document
    if document is None:
        return "", None
    depth = max(DEPTH, TAGS_TIMES_DEPTH // max(1, tags))
    if depth < tags and document.query_selector(">".join("*" * depth)):
        raise ValueError(f"tags are nested more than {depth} deep in a page of {tags}")
    text = extract_plain_text(
        tree, preserve_formatting=True, main_content=True, alt_texts=False, comments=False
    )
    marked = document.query_selector('[rel~="license"][href]')
    return text, marked.getattr("href") if marked else None


def decoded(data: bytes, charset: str | None = None) -> str:
    """The text, by the label that HTTP gave it when it is one of the web's, else as it looks."""
    label = charset and map_encoding_to_html5(charset, fallback_utf8=False)
    return bytes_to_str(data, label or detect_encoding(data, from_html_meta=True) or "utf-8")


def _refuse_to_parse(page: str, tags: int) -> None:
    if tags > TAGS:
        raise ValueError(f"a page of more than {TAGS} tags")
    if _attributes(page) > ATTRIBUTES:
        raise ValueError(f"tags of more than {ATTRIBUTES} attributes")
    formatting = TAGS_TIMES_FORMATTING // max(1, tags)
    if formatting < tags // 4 and _formatting(page, formatting) > formatting:
        raise ValueError(f"more than {formatting} kinds of formatting are open in a page of {tags}")


def _attributes(page: str) -> int:
    """About how many attributes there are in tags of many."""
    if len(page) < 3 * ATTRIBUTES:
        return 0
    long = (part for part in page.split(">") if len(part) > LONG_TAG)
    begun = ((part, start.start()) for part in long if (start := TAG.search(part)))
    return sum(len(BETWEEN_ATTRIBUTES.findall(part, start)) for part, start in begun)


def _formatting(page: str, enough: int) -> int:
    """About how many different formatting tags are open at once; a parser reopens three of a kind."""
    kinds = len(set(FORMATTING.findall(page)))
    if kinds <= enough:
        return kinds
    now = most = 0
    for tag in FORMATTING_OR_END.finditer(page):
        now = max(0, now - 1) if tag[1] else now + 1
        most = max(most, now)
    return min(kinds, most)
