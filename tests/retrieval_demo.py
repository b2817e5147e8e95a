"""The steps of `make retrieval-demo` that are no command of the platform.

Which article of the Universal Declaration of Human Rights is this, in another language? `examples UDHR
FOLDER` writes beginnings of articles in one language with those of the same articles in another as
answers (`train.jsonl`), and as questions the same articles between languages that are never paired there
(`test/test.jsonl`).

Ten articles are the choices of ten questions, and each of them is right once: whoever does not read the
questions has a tenth of them right, whatever texts are likely to it.

`check EVALUATION` compares the accuracy with that.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from demos import beginning, learned, write_records
from udhr import read_declarations

LANGUAGES = {
    "eng": "English",
    "rus": "Russian",
    "spa": "Spanish",
    "arb": "Arabic",
    "deu_1996": "German",
    "tur": "Turkish",
    "fra": "French",
    "pol": "Polish",
}
APART = 3
"""Places in LANGUAGES between two languages that are not paired in the examples."""
ARTICLES = 30
LETTERS = 60
"""Of an article that are shown, at most."""
CHOICES = 10

Pair = tuple[str, str]
"""The language that is read, and the one that is written."""
Texts = Mapping[str, Sequence[str]]
"""For each language the beginnings of its articles."""


def read_articles(udhr: Path) -> Texts:
    return {
        LANGUAGES[declaration.code]: [beginning(text, LETTERS) for text in declaration.articles]
        for declaration in read_declarations(udhr)
        if declaration.code in LANGUAGES
    }


def pairs() -> tuple[list[Pair], list[Pair]]:
    """Those of the examples, and those of the questions; each language is on both sides of both."""
    names = list(LANGUAGES.values())
    found: tuple[list[Pair], list[Pair]] = [], []
    for source, target in permutations(names, 2):
        apart = (names.index(target) - names.index(source)) % len(names)
        found[apart in (APART, len(names) - APART)].append((source, target))
    return found


def prompt(text: str, target: str) -> str:
    return f"In {target}: {text}"


def examples(texts: Texts, paired: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    for source, target in paired:
        for shown, answer in zip(texts[source], texts[target], strict=True):
            yield {"prompt": prompt(shown, target), "answer": answer, "language": target}


def questions(texts: Texts, asked: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    for source, target in asked:
        articles = list(range(ARTICLES))
        random.Random(f"{source} {target}").shuffle(articles)
        for start in range(0, ARTICLES, CHOICES):
            together = articles[start : start + CHOICES]
            choices = [texts[target][article] for article in together]
            for answer, article in enumerate(together):
                shown = prompt(texts[source][article], target)
                yield {"prompt": shown, "choices": choices, "answer": answer, "group": target}


def write_examples(udhr: Path, folder: Path) -> None:
    texts = read_articles(udhr)
    paired, asked = pairs()
    write_records(folder / "train.jsonl", examples(texts, paired))
    write_records(folder / "test/test.jsonl", questions(texts, asked))
    print(
        f"{len(paired)} pairs of languages to learn from and questions in {len(asked)} others: {folder}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(required=True, dest="command")
    written = commands.add_parser("examples")
    written.add_argument("udhr", type=Path)
    written.add_argument("folder", type=Path)
    commands.add_parser("check").add_argument("evaluation")
    given = parser.parse_args()
    if given.command == "examples":
        write_examples(given.udhr, given.folder)
    elif not learned(given.evaluation):
        sys.exit("the model has not learned to find articles")


if __name__ == "__main__":
    main()
