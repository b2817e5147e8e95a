"""How many paragraphs of the Universal Declaration get the right language, by language.

    PANTHALASSA_UDHR=…/udhr python tests/benchmarks/languages.py [--model FILE] [--docs FOLDER]

Counts paragraphs over 100 characters, whatever their number. A language has all its translations
and its scripts together; what is identified with a script (`zh-Hant`) counts for its language. Also
prints how many declarations, whole and in pieces, pass all rules of cleaning, by script. `--docs` writes
`languages.csv` and its figure there.
"""

import argparse
import csv
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.language_figure import draw
from udhr import Declaration, folder, read_declarations

from panthalassa.corpus.clean import Page, Removal, judge
from panthalassa.corpus.language import Identify, identify, open_identifier
from panthalassa.corpus.normalise import normalise

LEAST_CHARACTERS = 100
BEST = 120
TARGET = 0.9
PIECE_PARAGRAPHS = 15


def confusion(declarations: list[Declaration], identifier: Identify) -> dict[str, Counter[str]]:
    """What the paragraphs of each language were taken for."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for declaration in declarations:
        for text in declaration.paragraphs:
            if len(text) > LEAST_CHARACTERS:
                code = identifier(text).code.partition("-")[0]
                counts[declaration.language][code] += 1
    return counts


def accuracies(counts: dict[str, Counter[str]]) -> dict[str, float]:
    """The share of right answers by language, the best first."""
    shares = {language: found[language] / found.total() for language, found in counts.items()}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def mean_of_best(shares: dict[str, float]) -> float:
    return sum(list(shares.values())[:BEST]) / BEST


def verdicts(declarations: list[Declaration]) -> dict[str, list[Removal | None]]:
    """What cleaning says to each declaration, and to pieces of it, by script."""
    found: defaultdict[str, list[Removal | None]] = defaultdict(list)
    for declaration in declarations:
        parts = declaration.paragraphs
        pieces = [parts[i : i + PIECE_PARAGRAPHS] for i in range(0, len(parts), PIECE_PARAGRAPHS)]
        whole = [piece for piece in pieces if len(piece) == PIECE_PARAGRAPHS]
        for piece in [parts, *whole] if whole else []:  # some declarations are a few lines
            text = normalise("\n\n".join(piece))
            page = Page(text, identify(text).code)
            found[page.script].append(judge(page))
    return dict(sorted(found.items()))


def print_languages(console: Console, counts: dict[str, Counter[str]]) -> None:
    table = Table("language", "paragraphs", "right", "otherwise")
    for language, share in accuracies(counts).items():
        wrong = [(code, n) for code, n in counts[language].most_common(4) if code != language]
        others = ", ".join(f"{code} {n}" for code, n in wrong)
        table.add_row(language, str(counts[language].total()), f"{share:.1%}", others)
        if not share:
            break
    console.print(table)


def lines_of(counts: dict[str, Counter[str]]) -> list[dict[str, str]]:
    """The rows of languages.csv."""
    found = ((language, counts[language]) for language in accuracies(counts))
    return [
        {"language": language, "paragraphs": str(of.total()), "right": str(of[language])}
        for language, of in found
    ]


def write_docs(place: Path, counts: dict[str, Counter[str]]) -> None:
    lines = lines_of(counts)
    with (place / "languages.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    (place / "languages.svg").write_text(draw(lines, BEST, TARGET))


def print_scripts(console: Console, found: dict[str, list[Removal | None]]) -> None:
    table = Table("script", "documents", "kept", "removed by")
    for script, removals in found.items():
        rules = Counter(removal.rule for removal in removals if removal)
        reasons = ", ".join(f"{rule} {n}" for rule, n in rules.most_common())
        kept = 1 - rules.total() / len(removals)
        table.add_row(script, str(len(removals)), f"{kept:.1%}", reasons)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a fastText model instead of CLD2")
    parser.add_argument("--docs", type=Path, help="a folder for languages.csv and languages.svg")
    given = parser.parse_args()
    identifier = open_identifier(given.model)
    console = Console(highlight=False)
    declarations = read_declarations(folder())
    start = time.process_time()
    counts = confusion(declarations, identifier)
    seconds = time.process_time() - start
    print_languages(console, counts)
    if given.docs:
        write_docs(given.docs, counts)
    shares = accuracies(counts)
    size = sum(
        len(text.encode())
        for declaration in declarations
        for text in declaration.paragraphs
        if len(text) > LEAST_CHARACTERS
    )
    good = sum(share >= TARGET for share in shares.values())
    console.print(
        f"mean of the {BEST} best of {len(shares)} languages: {mean_of_best(shares):.2%}, target "
        f"{TARGET:.0%}; {good} languages reach it; {size / 1e6 / seconds:.1f} MB/s a core"
    )
    print_scripts(console, verdicts(declarations))


if __name__ == "__main__":
    main()
