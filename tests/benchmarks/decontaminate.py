"""How fast documents are compared with evaluations, beside sets of words joined in plain Python.

`make bench-decontaminate`. Documents are drawn from the words of the embedded corpus by a seeded
generator, with as many different ones as real text has; a thousand of them are the evaluations, and
every hundredth of the others has a passage of one planted in it. The other side lower-cases, drops
punctuation, joins thirteen words and looks in a set, as the field's scripts do. Prints MB of text a
CPU-second in one process for scripts with and without spaces, with ten million passages to look for.
"""

import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from panthalassa.corpus.decontaminate import WORDS, build

SEA = Path(__file__).parents[2] / "jobs" / "corpora" / "sea"
PASSAGES = 10_000_000
EVALUATIONS, DOCUMENTS, EVERY = 1_000, 4_000, 100
NO_WORD = re.compile(r"\W+")

Finder = Callable[[list[str]], list[bool]]


def compose(draw: random.Random, words: list[str], spaced: bool) -> list[str]:
    """Five hundred words, of which a third have an ending that makes them rare; or characters."""
    if not spaced:
        return draw.choices("".join(words), k=500)
    drawn = draw.choices(words, k=500)
    return [word if draw.random() < 0.7 else f"{word}{draw.randrange(3000)}" for word in drawn]


def make(languages: list[str], spaced: bool) -> tuple[list[str], list[str]]:
    """Evaluations, and documents of which every hundredth shares a passage with one."""
    draw, joint = random.Random(0), " " if spaced else ""
    words = [
        " ".join(file.read_text() for file in sorted((SEA / name).iterdir())).split()
        for name in languages
    ]
    tests = [compose(draw, draw.choice(words), spaced) for _ in range(EVALUATIONS)]
    documents = [compose(draw, draw.choice(words), spaced) for _ in range(DOCUMENTS)]
    for number in range(0, DOCUMENTS, EVERY):
        documents[number][200:240] = draw.choice(tests)[100:140]
    return [joint.join(text) for text in tests], [joint.join(text) for text in documents]


def ours(tests: list[str]) -> Finder:
    contamination = build([("tests", tests)])
    others = np.random.default_rng(0).integers(0, 2**64, PASSAGES, dtype=np.uint64)
    passages = np.unique(np.concatenate([contamination.passages, others]))
    owners = np.zeros(len(passages), np.uint16)
    contamination = replace(contamination, passages=passages, owners=owners)

    def find(texts: list[str]) -> list[bool]:
        column = pa.chunked_array([pa.array(texts, pa.large_string())])
        return [name is not None for name in contamination.find(column)]

    return find


def plain(tests: list[str]) -> Finder:
    def grams(text: str) -> set[str]:
        words = NO_WORD.sub(" ", text.lower()).split()
        return {" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}

    known = set().union(*map(grams, tests))
    return lambda texts: [not known.isdisjoint(grams(text)) for text in texts]


def measure(finder: Finder, documents: list[str]) -> tuple[float, int]:
    """MB a CPU-second, and how many are found."""
    start = time.process_time()
    found = sum(finder(documents))
    return sum(len(text.encode()) for text in documents) / 1e6 / (
        time.process_time() - start
    ), found


def main() -> int:
    table = Table("", "MB/s", "found", "planted", title=f"{PASSAGES:,} passages")
    missed = False
    for name, languages, spaced in (
        ("Latin, Cyrillic, Arabic", ["en", "de", "ru", "ar"], True),
        ("Chinese", ["zh"], False),
    ):
        tests, documents = make(languages, spaced)
        sides = {"panthalassa": ours} | ({"plain Python": plain} if spaced else {})
        for side, prepare in sides.items():
            speed, found = measure(prepare(tests), documents)
            missed |= found < DOCUMENTS // EVERY
            table.add_row(f"{name}, {side}", f"{speed:.1f}", str(found), str(DOCUMENTS // EVERY))
    Console(width=100).print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
