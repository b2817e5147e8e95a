"""The steps of `make retrieval-demo` that are no command of the platform.

Which article of the Universal Declaration of Human Rights is this, in another language? `examples UDHR
FOLDER` writes beginnings of articles in one language with those of the same articles in another as
answers (`train.jsonl`), and as questions the same articles between languages that are never paired there
(`pairs/test.jsonl`). Of two more languages the examples only read one, and only write the other; the
questions turn that round (`sides/test.jsonl`).

Ten articles are the choices of ten questions, and each of them is right once: whoever does not read the
questions has a tenth of them right, whatever texts are likely to it.

`check EVALUATION` compares the accuracy with that.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

from demos import beginning, learned, write_records
from udhr import read_declarations

PAIRED = {
    "eng": "English",
    "rus": "Russian",
    "spa": "Spanish",
    "arb": "Arabic",
    "deu_1996": "German",
    "tur": "Turkish",
    "fra": "French",
    "pol": "Polish",
}
READ = {"por_PT": "Portuguese"}
WRITTEN = {"swh": "Swahili"}
APART = 3
"""Places in PAIRED between two languages that are not paired in the examples."""
ARTICLES = 30
LETTERS = 60
"""Of an article that are shown, at most."""
CHOICES = 10

Pair = tuple[str, str]
"""The language that is read, and the one that is written."""
Texts = Mapping[str, Sequence[str]]
"""For each language the beginnings of its articles."""


def read_articles(udhr: Path) -> Texts:
    languages = PAIRED | READ | WRITTEN
    return {
        languages[declaration.code]: [beginning(text, LETTERS) for text in declaration.articles]
        for declaration in read_declarations(udhr)
        if declaration.code in languages
    }


def pairs() -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Those of the examples, of the questions between languages that are read and written there, and
    of those to or from a language that is not."""
    names = list(PAIRED.values())
    paired: list[Pair] = []
    asked: list[Pair] = []
    for source, target in permutations(names, 2):
        apart = (names.index(target) - names.index(source)) % len(names)
        (asked if apart in (APART, len(names) - APART) else paired).append((source, target))
    one_sided = [*product(READ.values(), names), *product(names, WRITTEN.values())]
    return paired + one_sided, asked, [(target, source) for source, target in one_sided]


def prompt(text: str, target: str) -> str:
    return f"In {target}: {text}"


def examples(texts: Texts, paired: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    for source, target in paired:
        for shown, answer in zip(texts[source], texts[target], strict=True):
            yield {"prompt": prompt(shown, target), "answer": answer, "language": target}


def questions(texts: Texts, asked: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    for source, target in asked:
        group = f"from {source}" if source in WRITTEN.values() else f"to {target}"
        articles = list(range(ARTICLES))
        random.Random(f"{source} {target}").shuffle(articles)
        for start in range(0, ARTICLES, CHOICES):
            together = articles[start : start + CHOICES]
            choices = [texts[target][article] for article in together]
            for answer, article in enumerate(together):
                shown = prompt(texts[source][article], target)
                yield {"prompt": shown, "choices": choices, "answer": answer, "group": group}


def write_examples(udhr: Path, folder: Path) -> None:
    texts = read_articles(udhr)
    paired, between, turned = pairs()
    write_records(folder / "train.jsonl", examples(texts, paired))
    write_records(folder / "pairs/test.jsonl", questions(texts, between))
    write_records(folder / "sides/test.jsonl", questions(texts, turned))
    print(
        f"{len(paired)} pairs of languages to learn from; questions in {len(between)} others, and in "
        f"{len(turned)} with a language on the side that it was not learned on: {folder}"
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
