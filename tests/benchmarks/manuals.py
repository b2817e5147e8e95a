"""Real text in some 400 languages: Debian's translated manuals, and the Declaration of Human Rights.

`fetch` unpacks three packages of Debian without installing them: web pages of the handbook and of the
installation guide (some 4,900 in 27 languages), and help pages of GNOME in XML (13,000 in 42). Their
licences are the GPL and CC-BY-SA, and nothing of them belongs into the repository. `write` makes
sources of a corpus from them: a crawl (WARC) and JSON lines, as they are, or of any size, with the
paragraphs of a language recombined by a seeded generator: most pages are alone, as in a crawl.
"""

import json
import random
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

PACKAGES = ("debian-handbook", "gnome-user-docs", "installation-guide-amd64")
PARAGRAPH = re.compile(r"(?<=<p>)(?:(?!<p>).){40,4000}?(?=</p>)", re.DOTALL)
BLOCKS = frozenset({"title", "p", "desc", "item", "td", "screen", "code", "cmd"})
NO_PROSE = frozenset({"info", "media"})
FILE_BYTES = 32 << 20


class Paper(NamedTuple):
    """A web page, or a text."""

    language: str
    url: str
    text: str


def fetch(folder: Path) -> Path:
    """The root of the unpacked packages, from apt if it is not below `folder` yet."""
    root = folder / "manuals"
    if not root.is_dir():
        for tool in ("apt-get", "dpkg-deb"):
            if not shutil.which(tool):
                raise SystemExit(
                    f"{tool} is missing: the texts are Debian packages ({', '.join(PACKAGES)}). Run "
                    "this on Debian or Ubuntu, or give a folder that another machine has filled."
                )
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-qq", "download", *PACKAGES], cwd=folder, check=True)
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package.name, "manuals.new"], cwd=folder, check=True)
        (folder / "manuals.new").rename(root)
    return root


def web_pages(root: Path) -> list[Paper]:
    files = sorted(root.glob("usr/share/doc/debian-handbook/html/*/*.html"))
    files += sorted(root.glob("usr/share/doc/installation-guide-amd64/*/*.html"))
    return [
        Paper(_language(file.parent.name), f"https://debian.example/{i}", file.read_text())
        for i, file in enumerate(files)
    ]


def help_pages(root: Path) -> list[Paper]:
    """The prose of GNOME's help: a block of XML is a paragraph."""
    found = []
    for i, file in enumerate(sorted(root.glob("usr/share/help/*/**/*.page"))):
        paragraphs = (" ".join(part.split()) for part in _prose(ElementTree.parse(file).getroot()))
        text = "\n\n".join(part for part in paragraphs if part)
        language = _language(file.relative_to(root).parts[3])
        found.append(Paper(language, f"https://gnome.example/{i}", text))
    return found


def _prose(element: ElementTree.Element) -> Iterator[str]:
    """The text of each innermost block."""
    name = element.tag.rpartition("}")[2]
    if name in NO_PROSE:
        return
    inner = [part for child in element for part in _prose(child)]
    if name in BLOCKS and not inner:
        yield "".join(element.itertext())
    yield from inner


def _language(folder: str) -> str:
    return "en" if folder == "C" else re.split(r"[-_@]", folder)[0]


def write(folder: Path, crawled: list[Paper], texts: list[Paper], size: int | None = None) -> int:
    """Write the sources of a corpus, of about `size` bytes; their size. A file has 32 MiB at most."""
    pages = crawled if size is None else _recombined(crawled, _with_paragraphs, size // 2)
    prose = texts if size is None else _recombined(texts, _of_paragraphs, size // 2)
    _write_files(folder / "crawl", "warc", (_record(page) for page in pages))
    _write_files(folder / "texts", "jsonl", (_line(text) for text in prose))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _record(page: Paper) -> bytes:
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.text.encode()
    head = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: {page.url}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def _line(text: Paper) -> bytes:
    fields = {"text": text.text, "url": text.url, "language": text.language}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _write_files(folder: Path, kind: str, records: Iterator[bytes]) -> None:
    folder.mkdir(parents=True)
    number, left = 0, 0
    stream = None
    for record in records:
        if left <= 0:
            if stream:
                stream.close()
            stream, left = (folder / f"{number:03d}.{kind}").open("wb"), FILE_BYTES
            number += 1
        assert stream
        stream.write(record)
        left -= len(record)
    if stream:
        stream.close()


Compose = Callable[[random.Random, Paper, list[str]], str]


def _recombined(papers: list[Paper], compose: Compose, size: int) -> Iterator[Paper]:
    """So many bytes of papers, each like one of these, with other paragraphs of its language."""
    draw = random.Random(0)
    pieces: defaultdict[str, list[str]] = defaultdict(list)
    for paper in papers:
        pieces[paper.language] += _paragraphs(paper)
    number = 0
    while size > 0:
        paper = draw.choice(papers)
        if not pieces[paper.language]:
            continue
        text = compose(draw, paper, pieces[paper.language])
        size -= len(text.encode())
        number += 1
        yield Paper(paper.language, f"https://manuals.example/{number}", text)


def _paragraphs(paper: Paper) -> list[str]:
    return PARAGRAPH.findall(paper.text) or paper.text.split("\n\n")


def _with_paragraphs(draw: random.Random, page: Paper, pieces: list[str]) -> str:
    """The web page with another one in the place of each of its paragraphs."""
    return PARAGRAPH.sub(lambda _: draw.choice(pieces), page.text)


def _of_paragraphs(draw: random.Random, text: Paper, pieces: list[str]) -> str:
    """As many paragraphs as the text has, but at least eight."""
    return "\n\n".join(draw.choices(pieces, k=max(8, text.text.count("\n\n") + 1)))
