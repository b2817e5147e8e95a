"""The process that renders a chat template: it reads jobs of JSON from stdin and writes what came out.

A template is a program of a stranger, whom Jinja's sandbox keeps from Python, and the limits here from
endless loops and endless texts. It is given no clock and no tools, so that a chat is the same on every
day, and no chance. Contents are stand-ins, which a template may compare and search: that is noted. What
it could only do to the text itself, such as writing it in capitals, is refused; so is a template that
makes something else of SAMPLES than what the stand-ins show.

Run by its path, with nothing of this package: `chat_template` does that.
"""

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NoReturn, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

AROUND, WITHOUT_LINES = "\u2003", "\u2002"
"""White space that no template writes: it is gone where a template strips a content, and the other where
it strips line breaks."""
DROPPED = {"": None, WITHOUT_LINES: "\n", AROUND: ""}
OPEN, CLOSE = "\ue000", "\ue001"
EDGE = f"([{AROUND}{WITHOUT_LINES}]?)"
STAND_IN = re.compile(f"{EDGE}{OPEN}([0-9]{{1,5}}){CLOSE}{EDGE}")
SAMPLES = (
    "42",
    '\n\tno_Such <i>&amp; "Word\'s"</i>\n    in  it\r\n\r\n9 %s {{ x }} É 海 '
    + "word " * 60
    + "\n",
    "YES",
    " 7th: ",
    "\nx\t",
)
"""Contents as they may be. There is an odd number of them, so that each role has all in a long chat."""
FEW_MESSAGES = 10
"""Of a chat in which each message is each of SAMPLES."""
MEMORY = 1 << 30
PROCESSOR_SECONDS = 60
"""Which end this process where nobody waits for it any more."""
MOST_CHARACTERS = 1 << 20
"""Of a chat without its contents."""
MOST_TOLD = 1000
"""Characters of a template's own message."""
Shape = list[tuple[str, bool]]
Piece = str | tuple[int, str | None, str | None]
"""A text, or the number of a message and what is dropped left and right of its content."""


class Refused(Exception):
    """What the template itself refuses, by `raise_exception`."""


class Unsupported(Exception):
    """What it does to a content that a stand-in can not show."""


class Content(str):
    """Stands for a content; `_noted` are the texts that it was searched for or compared with."""

    __slots__ = ("_noted",)
    _noted: set[str]

    @classmethod
    def _of(cls, text: str, noted: set[str]) -> Self:
        found = cls(text)
        found._noted = noted
        return found

    def _note(self, *values: object) -> None:
        for value in values:
            if isinstance(value, tuple | list):
                self._note(*value)
            elif isinstance(value, str) and value.strip() and OPEN not in value:
                self._search(str(value))

    def _search(self, text: str) -> None:
        self._noted.add(text)

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        yield self[0]

    def __add__(self, other: str) -> "Joined":
        return Joined._of(super().__add__(other), self._noted)

    def __radd__(self, other: str) -> "Joined":
        return Joined._of(other + str.__str__(self), self._noted)

    def __contains__(self, other: object) -> bool:
        self._note(other)
        return isinstance(other, str) and super().__contains__(other)

    def __eq__(self, other: object) -> bool:
        self._note(other)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, key: Any) -> NoReturn:
        if isinstance(key, str):
            raise TypeError("a text has no keys")
        raise Unsupported("takes single characters of a message")


class Joined(Content):
    """A text with contents in it, in which what is searched for may begin outside of them."""

    __slots__ = ()

    def _search(self, text: str) -> NoReturn:
        raise Unsupported(f"searches a text with a message in it for {text!r}")


def _searching(name: str) -> Callable[..., Any]:
    """A method of str that notes what it searches for, and gives stand-ins back."""

    def method(self: Content, *arguments: Any, **named: Any) -> Any:
        self._note(*arguments, *named.values())
        found = getattr(str, name)(self, *arguments, **named)
        if isinstance(found, str):
            return self._of(found, self._noted)
        if isinstance(found, tuple | list):
            return [self._of(part, self._noted) for part in found]
        return found

    return method


def _stripping(name: str) -> Callable[..., Any]:
    """A method of str that strips white space, or line breaks."""

    def method(self: Content, characters: str | None = None) -> Content:
        if characters is not None and set(characters) != {"\n"}:
            raise Unsupported(f"strips {characters!r} off a message")
        text: str = getattr(str, name)(self, characters)
        if characters and name != "rstrip" and text.startswith(AROUND):
            text = WITHOUT_LINES + text[1:]
        if characters and name != "lstrip" and text.endswith(AROUND):
            text = text[:-1] + WITHOUT_LINES
        return self._of(text, self._noted)

    return method


def _refusing(name: str, why: str) -> Callable[..., Any]:
    def method(self: Content, *_: Any, **__: Any) -> NoReturn:
        raise Unsupported(f"{why} of a message ({name.strip('_')})")

    return method


SEARCHING = (
    *("split", "rsplit", "partition", "rpartition", "splitlines"),
    *("replace", "removeprefix", "removesuffix", "startswith", "endswith"),
    *("find", "rfind", "index", "rindex", "count"),
)
CHANGING = (
    *("upper", "lower", "title", "capitalize", "casefold", "swapcase", "translate", "encode"),
    *("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"),
    *("__mod__", "__mul__", "__rmul__"),
)
LOOKING = (
    *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower"),
    *("isnumeric", "isprintable", "isspace", "istitle", "isupper"),
    *("__hash__", "__len__", "__lt__", "__le__", "__gt__", "__ge__"),
)
for _name in ("strip", "lstrip", "rstrip"):
    setattr(Content, _name, _stripping(_name))
for _name in SEARCHING:
    setattr(Content, _name, _searching(_name))
for _name in CHANGING:
    setattr(Content, _name, _refusing(_name, "changes the text"))
for _name in LOOKING:
    setattr(Content, _name, _refusing(_name, "looks at the text"))


class Generation(Extension):
    """`{% generation %}`: transformers' mark of what an assistant says, which changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _refuse(message: str) -> NoReturn:
    raise Refused(message)


def _to_json(value: Any, **options: Any) -> str:
    told = json.dumps(value, ensure_ascii=False, **options)
    if OPEN in told:
        raise Unsupported("writes a message as JSON")
    return told


def _is_in(value: Any, found: Any) -> bool:
    if isinstance(value, Content) and isinstance(found, str):
        raise Unsupported("searches a text for a message")
    return value in found


class Watched(NodeTransformer):
    """Makes `~` and `in`, which Python does for a str, what a Content sees."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        texts: list[nodes.Expr] = [
            nodes.Filter(part, "string", [], [], None, None) for part in node.nodes
        ]
        return reduce(nodes.Add, texts).set_lineno(node.lineno, override=True)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        first = node.ops[0]
        if len(node.ops) > 1 or first.op not in ("in", "notin"):
            return node
        test = nodes.Test(node.expr, "in", [first.expr], [], None, None)
        found = test if first.op == "in" else nodes.Not(test)
        return found.set_lineno(node.lineno, override=True)


class Environment(ImmutableSandboxedEnvironment):
    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        return super()._generate(Watched().visit(source), *arguments, **named)


def compiled(source: str) -> jinja2.Template:
    """As transformers compiles a template. Raises jinja2.TemplateError."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.tests["in"] = _is_in
    environment.globals["raise_exception"] = _refuse
    del environment.filters["random"], environment.globals["lipsum"]
    return environment.from_string(source)


def rendered(
    template: jinja2.Template, tokens: dict[str, str], shape: Shape, asked: bool
) -> dict[str, Any]:
    """The chat's pieces, and what contents were searched for; else what was refused."""
    given = {"tools": None, "documents": None, "add_generation_prompt": asked, **tokens}
    noted: set[str] = set()
    stand_ins = [
        Content._of(f"{AROUND}{OPEN}{number}{CLOSE}{AROUND}", noted) for number in range(len(shape))
    ]
    try:
        pieces = _pieces(_text(template, given, shape, stand_ins), len(shape))
        for contents in _samples(shape, sorted(noted)):
            if _text(template, given, shape, contents) != _filled(pieces, contents):
                raise Unsupported("changes or looks at the text of a message")
    except Refused as error:
        return {"refused": _told(error)}
    except Unsupported as error:
        return {"unsupported": _told(error)}
    except Exception as error:  # whatever a template does wrong
        return {"failed": f"{type(error).__name__}: {_told(error)}"}
    return {"pieces": pieces, "noted": sorted(noted)}


def _text(
    template: jinja2.Template, given: dict[str, Any], shape: Shape, contents: list[Any]
) -> str:
    messages = [
        {"role": role, "content": content if says else ""}
        for (role, says), content in zip(shape, contents, strict=True)
    ]
    return template.render(messages=messages, **given)


def _pieces(text: str, messages: int) -> list[Piece]:
    """The texts and contents of a chat with stand-ins. Raises ValueError for what can not be one."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters")
    text.encode()
    first, *rest = STAND_IN.split(text)
    pieces: list[Piece] = [first]
    for left, number, right, behind in zip(*(rest[i::4] for i in range(4)), strict=True):
        if int(number) >= messages:
            raise Unsupported("writes characters that stand for messages here")
        pieces += [(int(number), DROPPED[left], DROPPED[right]), behind]
    if any(mark in piece for piece in pieces if isinstance(piece, str) for mark in (OPEN, CLOSE)):
        raise Unsupported("takes a message apart, or writes characters that stand for one here")
    return pieces


def _samples(shape: Shape, noted: list[str]) -> Iterator[list[str]]:
    """Contents for a chat, without what they are searched for."""
    samples = [sample for sample in (_without(one, noted) for one in SAMPLES) if sample.strip()]
    for shift in range(len(samples) if len(shape) <= FEW_MESSAGES else min(1, len(samples))):
        yield [samples[(number + shift) % len(samples)] for number in range(len(shape))]


def _without(text: str, searched: list[str]) -> str:
    while found := next((one for one in searched if one in text), None):
        text = text.replace(found, "")
    return text


def _filled(pieces: list[Piece], contents: list[str]) -> str:
    """The text with the contents, of which `chat_format.Slot` drops the same."""
    return "".join(
        piece if isinstance(piece, str) else contents[piece[0]].lstrip(piece[1]).rstrip(piece[2])
        for piece in pieces
    )


def _told(error: Exception) -> str:
    return str(error)[:MOST_TOLD].encode(errors="replace").decode()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    request = json.load(sys.stdin)
    try:
        template = compiled(request["template"])
        found = [rendered(template, request["tokens"], *job) for job in request["jobs"]]
    except jinja2.TemplateSyntaxError as error:
        found = [{"syntax": f"line {error.lineno}: {error.message}"}] * len(request["jobs"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
