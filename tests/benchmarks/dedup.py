"""Recall and precision of near-duplicates, and their speed, beside datatrove's on the same texts.

`make bench-dedup`. Documents are mixed from the embedded corpus and Python's documentation by a
seeded generator: most are alone, some have a planted near-duplicate with a share of their words
exchanged or their end cut off, so that Jaccard similarities from 0.4 to 1 are equally frequent. The
truth is the Jaccard similarity of sets of tokens, made here without any of the platform's
functions. Prints recall by similarity, precision, and MB of text a CPU-second in one process.
"""

import argparse
import hashlib
import random
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from panthalassa.corpus.components import name_nodes, places
from panthalassa.corpus.dedup import name_column, similar_pairs
from panthalassa.corpus.minhash import choose_bands, key_lists

THRESHOLD = 0.8
RECALL, PRECISION = 0.95, 0.98
BUCKETS = [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
SEA = Path(__file__).parents[2] / "jobs" / "corpora" / "sea"

Pair = tuple[int, int]
Finder = Callable[[list[str]], set[Pair]]


def passages() -> list[list[str]]:
    """The words of each text; a character is a word where no spaces are written."""
    texts = [topics[name] for name in sorted(topics)]
    for file in sorted(SEA.rglob("*")):
        if file.is_file():
            texts.append(file.read_text())
    return [
        re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\s\u3040-\u30ff\u4e00-\u9fff]+", t)
        for t in texts
    ]


def compose(draw: random.Random, sources: list[list[str]]) -> list[str]:
    """60 to 400 words of one text, in runs of 8 to 25 from different places."""
    source, words, wanted = draw.choice(sources), [], draw.randrange(60, 400)
    while len(words) < wanted:
        start = draw.randrange(len(source))
        words += source[start : start + draw.randrange(8, 25)]
        source = draw.choice(sources) if draw.random() < 0.3 else source
    return words


def plant(draw: random.Random, words: list[str], vocabulary: list[str]) -> list[str]:
    """A near-duplicate whose similarity is about as likely to be anything from 0.4 to 1."""
    similarity = draw.uniform(0.4, 1)
    if draw.random() < 0.3:
        return words[: max(5, round(similarity * len(words)))]
    kept = (2 * similarity / (1 + similarity)) ** 0.2  # five words survive with that share
    return [word if draw.random() < kept else draw.choice(vocabulary) for word in words]


def make(documents: int, seed: int = 0) -> tuple[list[str], list[Pair]]:
    draw = random.Random(seed)
    sources = [words for words in passages() if len(words) > 100]
    vocabulary = sorted({word for words in sources for word in words})
    originals = [compose(draw, sources) for _ in range(documents * 2 // 3)]
    copies = [plant(draw, originals[i], vocabulary) for i in range(documents - len(originals))]
    order = list(range(documents))
    draw.shuffle(order)
    texts = [""] * documents
    for place, words in zip(order, originals + copies, strict=True):
        texts[place] = " ".join(words)
    planted = [(order[i], order[len(originals) + i]) for i in range(len(copies))]
    return texts, [(min(pair), max(pair)) for pair in planted]


def true_jaccard(one: str, other: str) -> float:
    a, b = (_sets(text) for text in (one, other))
    return len(a & b) / max(1, len(a | b))


def _sets(text: str) -> set[tuple[str, ...]]:
    bare = "".join(c if c.isalnum() or ord(c) > 0x2FF else " " for c in text.lower())
    bare = re.sub(r"[\u2000-\u2fff\u3000-\u3020\uff00-\uff65‘’“”„«»…—–−]", " ", bare)
    tokens = re.sub(r"([\u3005\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff])", r" \1 ", bare).split()
    return {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}


def named(column: pa.ChunkedArray) -> pa.Table:
    """What deduplication is given of texts, which are the rows of one partition."""
    encoded = [text.encode() for text in column.to_pylist()]
    digests = b"".join(hashlib.sha256(text).digest() for text in encoded)
    nodes = name_nodes(
        [len(text) for text in encoded],
        np.frombuffer(digests, np.uint8).reshape(len(encoded), -1),
        partition=0,
        first=0,
    )
    keys = key_lists(column, choose_bands(THRESHOLD))
    return pa.table({"name": name_column(nodes), "keys": keys})


def ours(texts: list[str]) -> set[Pair]:
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    edges = similar_pairs(named(column), THRESHOLD, lambda partition, rows: column.take(rows))
    first, second = (places(nodes)[1].tolist() for nodes in edges)
    return {(min(p), max(p)) for p in zip(first, second, strict=True)}


def datatrove(texts: list[str]) -> set[Pair]:
    """datatrove's signatures and buckets as they are set by default."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupSignature,
    )

    config, found = MinhashConfig(), set()
    with tempfile.TemporaryDirectory() as folder:
        documents = (Document(text=text, id=str(i)) for i, text in enumerate(texts))
        MinhashDedupSignature(f"{folder}/signatures", config).run(documents, 0, 1)
        for rank in range(config.num_buckets):
            step = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs", config=config)
            step.run(None, rank, config.num_buckets)
        for file in Path(folder, "pairs").iterdir():
            for _, a, _, b in struct.iter_unpack("<4I", file.read_bytes()):
                found.add((min(a, b), max(a, b)))
    return found


def measure(name: str, finder: Finder, texts: list[str], truth: dict[Pair, float]) -> list[str]:
    size = sum(len(text.encode()) for text in texts) / 1e6
    start = time.process_time()
    found = finder(texts)
    rate = size / (time.process_time() - start)
    right = sum(
        (truth[p] if p in truth else true_jaccard(texts[p[0]], texts[p[1]])) >= THRESHOLD
        for p in found
    )
    similar = [pair for pair, similarity in truth.items() if similarity >= THRESHOLD]
    recall = len(found.intersection(similar)) / len(similar)
    cells = [name, f"{recall:.4f}", f"{right / max(1, len(found)):.4f}", f"{rate:.1f}"]
    for low, high in zip(BUCKETS, [*BUCKETS[1:], 1.01], strict=True):
        pairs = [pair for pair, similarity in truth.items() if low <= similarity < high]
        cells.append(f"{len(found.intersection(pairs)) / max(1, len(pairs)):.3f}")
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=24_000)
    documents = parser.parse_args().documents
    texts, planted = make(documents)
    truth = {pair: true_jaccard(texts[pair[0]], texts[pair[1]]) for pair in planted}
    bands, rows = choose_bands(THRESHOLD)
    table = Table(title=f"{documents} documents, {len(planted)} planted pairs")
    for heading in ["", "recall", "precision", "MB/s", *map(str, BUCKETS)]:
        table.add_column(heading)
    result = measure("panthalassa", ours, texts, truth)
    table.add_row(*result)
    middles = [(a + b) / 2 for a, b in zip(BUCKETS, [*BUCKETS[1:], 1], strict=True)]
    expected = [f"{1 - (1 - s**rows) ** bands:.3f}" for s in middles]
    table.add_row(f"1-(1-s^{rows})^{bands}, unverified", "", "", "", *expected)
    try:
        table.add_row(*measure("datatrove", datatrove, texts, truth))
    except ImportError as error:
        print(f"datatrove is not here to compare with: {error}", file=sys.stderr)
    Console(width=150).print(table)
    recall, precision = float(result[1]), float(result[2])
    print(f"recall {recall} (target {RECALL}), precision {precision} (target {PRECISION})")
    return int(recall < RECALL or precision < PRECISION)


if __name__ == "__main__":
    sys.exit(main())
