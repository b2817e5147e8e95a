"""Wikitext comes in, prose goes out: mwparserfromhell parses, and what is no prose is left out.

Left out are templates, tables, references, files, categories, formulas, readings (ruby) and
comments; of a link remains its text, of a heading its title, of variants of a script the first.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import mwparserfromhell
from mwparserfromhell.definitions import is_visible
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

HIDDEN_NAMESPACES = frozenset({"file", "image", "category", "media"})
LEFT_OUT = frozenset(
    {"ref", "references", "table", "tr", "td", "th", "math", "chem", "ce", "hiero", "score"}
    | {"rt", "rp"}
    | {"syntaxhighlight", "source", "style", "templatestyles", "includeonly", "noinclude"}
)
BREAKS = frozenset({"br", "hr", "p", "div"})

DEFINITION = re.compile(r"^(;[^\n:{}<>\[\]]*):(?!//)", re.M)
"""A term whose definition stands on the same line."""
VARIANTS = re.compile(r"-\{(?:([^{}|]*)\|)?([^{}]*)\}-")
VARIANT = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]+)?\s*:([^;]*)")
UNSEEN = frozenset("HTN-")
"""Flags of variants that only make a rule, or the page's title."""
MAGIC_WORD = re.compile(r"__[^\W_]+__")
EMPTY_PARENTHESES = re.compile(r"\s*[(（][\s,;:，；、]*[)）]")
OPENED_BY_A_MARK = re.compile(r"([(（])[\s,;，；、]+")
SPACES = re.compile(r"[ \t\u00a0]+")
AROUND_LINE_ENDS = re.compile(r" ?\n ?")
BLANK_LINES = re.compile(r"\n{3,}")


def prose(wikitext: str, hidden: Collection[str] = HIDDEN_NAMESPACES) -> str:
    """The prose of an article; `hidden` are the namespaces, in lower case, whose links have none.

    Raises ValueError, or RecursionError, for what the parser can not take.
    """
    try:
        code = mwparserfromhell.parse(DEFINITION.sub(r"\1\n:", wikitext))
    except mwparserfromhell.parser.ParserError as error:
        raise ValueError(str(error)) from error
    text = VARIANTS.sub(_variant, "".join(_visible(code, hidden)))
    text = MAGIC_WORD.sub("", text)
    text = OPENED_BY_A_MARK.sub(r"\1", EMPTY_PARENTHESES.sub("", text))
    text = AROUND_LINE_ENDS.sub("\n", SPACES.sub(" ", text))
    return BLANK_LINES.sub("\n\n", text).strip()


def _visible(code: Any, hidden: Collection[str]) -> Iterator[str]:
    for node in code.nodes if code is not None else ():
        match node:
            case Text():
                yield str(node.value)
            case HTMLEntity():
                yield _character(node)
            case Heading():
                yield from _visible(node.title, hidden)
            case Wikilink():
                if not _is_hidden(str(node.title), hidden):
                    yield from _visible(node.title if node.text is None else node.text, hidden)
            case ExternalLink():
                yield from _visible(node.title, hidden)
            case Tag():
                yield from _visible_in_tag(node, hidden)


def _visible_in_tag(tag: Tag, hidden: Collection[str]) -> Iterator[str]:
    name = str(tag.tag).strip().lower()
    if name in LEFT_OUT or not is_visible(name):
        return
    if name in BREAKS:
        yield "\n"
    yield from _visible(tag.contents, hidden)


def _variant(written: re.Match[str]) -> str:
    flags, text = written.groups("")
    if UNSEEN.intersection(flags.split(";")):
        return ""
    first = VARIANT.match(text)
    return first[1].strip() if first else text


def _is_hidden(title: str, hidden: Collection[str]) -> bool:
    prefix, separator, _ = title.partition(":")
    return bool(separator) and prefix.strip().lower() in hidden


def _character(entity: HTMLEntity) -> str:
    try:
        return str(entity.normalize())
    except (ValueError, OverflowError):  # no such character
        return ""
