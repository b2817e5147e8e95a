"""The process that renders a chat template: it reads jobs of JSON from stdin and writes what came out.

A template is a program of a stranger, whom Jinja's sandbox keeps from Python, and the limits here from
endless loops and endless texts. It is given no clock and no tools, so that a chat is the same on every
day. Contents are stand-ins, which a template may compare and search: that is noted. What it could only
do to the text itself, such as writing it in capitals, is refused.

Run by its path, with nothing of this package: `chat_template` does that.
"""

import json
import resource
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

AROUND = "\u2003"
"""White space that no template writes: it is gone where a template strips a content."""
OPEN, CLOSE = "\ue000", "\ue001"
MEMORY = 1 << 30
LONGEST = 16 << 20
"""Characters of a chat without its contents."""


class Refused(Exception):
    """What the template itself refuses, by `raise_exception`."""


class Unsupported(Exception):
    """What it does to a content that a stand-in can not show."""


class Content(str):
    """Stands for a content; `noted` are the texts that it was searched for or compared with."""

    __slots__ = ("noted",)
    noted: set[str]

    @classmethod
    def of(cls, text: str, noted: set[str]) -> "Content":
        found = cls(text)
        found.noted = noted
        return found

    def _note(self, *values: object) -> None:
        for value in values:
            if isinstance(value, tuple | list):
                self._note(*value)
            elif isinstance(value, str) and value.strip() and OPEN not in value:
                self.noted.add(str(value))

    def __str__(self) -> str:
        return self

    def __contains__(self, other: object) -> bool:
        self._note(other)
        return isinstance(other, str) and super().__contains__(other)

    def __eq__(self, other: object) -> bool:
        self._note(other)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __getitem__(self, key: Any) -> NoReturn:
        if isinstance(key, str):
            raise TypeError("a text has no keys")
        raise Unsupported("takes single characters of a message")


def _searching(name: str) -> Callable[..., Any]:
    """A method of str that notes what it searches for, and gives stand-ins back."""

    def method(self: Content, *arguments: Any, **named: Any) -> Any:
        self._note(*arguments, *named.values())
        found = getattr(str, name)(self, *arguments, **named)
        if isinstance(found, str):
            return Content.of(found, self.noted)
        if isinstance(found, tuple | list):
            return [Content.of(part, self.noted) for part in found]
        return found

    return method


def _changing(name: str) -> Callable[..., Any]:
    def method(self: Content, *_: Any, **__: Any) -> NoReturn:
        raise Unsupported(f"changes the text of a message ({name})")

    return method


SEARCHING = (
    *("strip", "lstrip", "rstrip", "split", "rsplit", "partition", "rpartition", "splitlines"),
    *("replace", "removeprefix", "removesuffix", "startswith", "endswith"),
    *("find", "rfind", "index", "rindex", "count"),
)
CHANGING = (
    *("upper", "lower", "title", "capitalize", "casefold", "swapcase", "translate", "encode"),
    *("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"),
)
for _name in SEARCHING:
    setattr(Content, _name, _searching(_name))
for _name in CHANGING:
    setattr(Content, _name, _changing(_name))


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


def compiled(source: str) -> jinja2.Template:
    """As transformers compiles a template. Raises jinja2.TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def rendered(
    template: jinja2.Template, tokens: dict[str, str], shape: list[tuple[str, bool]], asked: bool
) -> dict[str, Any]:
    """The chat's text with its stand-ins, and what contents were searched for; else what was refused."""
    noted: set[str] = set()
    messages = [
        {
            "role": role,
            "content": Content.of(f"{AROUND}{OPEN}{number}{CLOSE}{AROUND}", noted) if says else "",
        }
        for number, (role, says) in enumerate(shape)
    ]
    given = {"tools": None, "documents": None, "add_generation_prompt": asked, **tokens}
    try:
        text = template.render(messages=messages, **given)
    except Refused as error:
        return {"refused": str(error)}
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Exception as error:  # whatever a template does wrong
        return {"failed": f"{type(error).__name__}: {error}"}
    if len(text) > LONGEST:
        return {"failed": f"it writes {len(text):,} characters"}
    return {"text": text, "noted": sorted(noted)}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    request = json.load(sys.stdin)
    try:
        template = compiled(request["template"])
        found = [rendered(template, request["tokens"], *job) for job in request["jobs"]]
    except jinja2.TemplateSyntaxError as error:
        found = [{"syntax": f"line {error.lineno}: {error.message}"}] * len(request["jobs"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
