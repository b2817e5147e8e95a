"""Words with tags: files of the CoNLL shared tasks, and the entities that tags mean.

A line has a word and, behind the last space, its tag; an empty line ends a sentence.
"""

from collections.abc import Iterator, Sequence

from panthalassa.evaluate.tasks.reading import read_lines, wrong
from panthalassa.storage import Storage

DOCUMENT = "-DOCSTART-"


def read_tags(data: Storage, path: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """For each sentence the number of its last line, its words and their tags."""
    words: list[str] = []
    tags: list[str] = []
    number = 0
    for number, line in read_lines(data, path):
        parts = line.split()
        if parts and parts[0] != DOCUMENT:
            if len(parts) < 2:
                raise wrong(data, path, number, f"expected a word and a tag, found {line[:40]!r}")
            words.append(parts[0])
            tags.append(parts[-1])
        elif words:
            yield number, words, tags
            words, tags = [], []
    if words:
        yield number, words, tags


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (kind, start, stop) of tags B-kind, I-kind and O. An I without its beginning begins one, as in
    the shared tasks' own evaluation."""
    found: set[tuple[str, int, int]] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        position, _, name = tag.partition("-")
        inside = position == "I" and name == kind
        if kind and not inside:
            found.add((kind, start, place))
            kind = ""
        if name and position in "BI" and not inside:
            start, kind = place, name
    return found
