"""Wikipedia's XML dumps: the articles come out as prose, with their URL, language and licence.

A page is cut out of the dump between `<page>` and `</page>` (inside of it both are escaped) and
parsed alone, so that a broken one costs no other. Redirects and all namespaces but
that of articles are left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from panthalassa.corpus.documents import DOCUMENT_BYTES, Problem, Record, SourceFile
from panthalassa.corpus.formats.stream import lines, unpacked
from panthalassa.corpus.formats.wikitext import HIDDEN_NAMESPACES, prose

ARTICLES = "0"
FILE, CATEGORY = "6", "14"
HEAD_BYTES = 1 << 20
PAGE_ENDS = re.compile(rb"(?=<page>)|(?<=</page>)")
LICENSE = "CC BY-SA"
LICENSED = ("wikipedia.org", "wiktionary.org", "wikibooks.org", "wikisource.org", "wikivoyage.org")


@dataclass(frozen=True)
class Site:
    """What a dump says of its wiki; `url` is that of its articles, up to their title."""

    language: str | None = None
    url: str | None = None
    license: str | None = None
    hidden: frozenset[str] = HIDDEN_NAMESPACES


def read_wikipedia(file: SourceFile) -> Iterator[Record | Problem]:
    with unpacked(file) as stream:
        site = Site()
        for number, part in _parts(_cut(lines(stream))):
            place = f"{file.place}, line {number}"
            if isinstance(part, str):
                yield Problem(place, part)
            elif not part.startswith(b"<page>"):
                site = site_of(part.decode(errors="replace"))
            elif record := _article(place, part, site):
                yield record


def _cut(whole_lines: Iterator[tuple[bytes, bool]]) -> Iterator[tuple[int, bytes, bool]]:
    """The lines with their numbers; those in which a page begins or ends come in pieces."""
    for number, (line, whole) in enumerate(whole_lines, start=1):
        pieces = PAGE_ENDS.split(line) if b"page>" in line else [line]
        for piece in pieces:
            if piece:
                yield number, piece, whole


def _parts(pieces: Iterator[tuple[int, bytes, bool]]) -> Iterator[tuple[int, bytes | str]]:
    """The head of a dump, and its pages, each with its first line's number; a str says what is
    wrong there."""
    part: list[bytes] | None = []  # None: between pages
    start, size, last, number, in_head = 1, 0, b"", 0, True
    for number, line, whole in pieces:
        mark = line.strip()
        last = mark or last
        if mark.startswith(b"<page>"):
            if part is not None:
                yield start, b"".join(part) if in_head else "the page has no end"
            part, start, size, in_head = [], number, 0, False
        if part is None:
            continue
        part.append(line.lstrip() if not part else line)
        size += len(line)
        if in_head and size > HEAD_BYTES:
            break
        if not whole or size > DOCUMENT_BYTES:
            yield start, f"the page is longer than {size >> 20} MiB"
            part = None
        elif mark.endswith(b"</page>"):
            yield start, b"".join(part)
            part = None
    if in_head and number:
        yield number, "no dump of MediaWiki, or cut off before its first <page>"
    elif number and last != b"</mediawiki>":
        yield number, "the dump is cut off: it does not end with </mediawiki>"


def site_of(head: str) -> Site:
    """The site that a dump's `<siteinfo>` describes."""
    language = re.search(r'<mediawiki\b[^>]*\sxml:lang="([^"]+)"', head)
    base = re.search(r"<base>([^<]+)</base>", head)
    names = re.findall(rf'<namespace key="(?:{FILE}|{CATEGORY})"[^>]*>([^<]+)<', head)
    host = urlsplit(base[1]).hostname or "" if base else ""
    return Site(
        language[1] if language else None,
        base[1].rpartition("/")[0] + "/" if base else None,
        LICENSE if ".".join(host.split(".")[-2:]) in LICENSED else None,
        HIDDEN_NAMESPACES | {name.strip().lower() for name in names},
    )


def _article(place: str, page: bytes, site: Site) -> Record | Problem | None:
    try:
        tree = ElementTree.fromstring(page)
    except (ElementTree.ParseError, ValueError) as error:
        return Problem(place, f"the page is no XML: {error}")
    title = tree.findtext("title")
    text = tree.findtext("revision[last()]/text")
    model = tree.findtext("revision[last()]/model", "wikitext")
    if tree.findtext("ns") != ARTICLES or tree.find("redirect") is not None or model != "wikitext":
        return None
    if title is None or text is None:
        return Problem(place, "the page has no title or no text")
    try:
        cleaned = prose(text, site.hidden)
    except (ValueError, RecursionError) as error:
        return Problem(place, f"the wikitext of {title} can not be parsed: {error}")
    url = site.url and site.url + quote(title.replace(" ", "_"), safe="/:(),!'*")
    return Record(place, cleaned, site.language, url, site.license)
