"""A corpus as a table: what its manifest counts by domain, and how often training would draw it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from panthalassa.corpus.fertility import Fertility, TextCounts, counts_of, fertilities
from panthalassa.corpus.manifest import Manifest, Split

HEADER = (
    *("", "documents", "MB", "tokens", "share", "drawn"),
    *("tokens/byte", "tokens/char", "parity", "held out", "its tokens"),
)
IMAGES = ("images", "its images")
"""Of a corpus that has any: how many each split has."""
COUNTED = ("counted", "its counted")
"""Of a corpus for fine-tuning: the share of each split's tokens that count in the loss."""
ABSENT = "–"
ALL = "all"


def table(manifest: Manifest, drawn: Mapping[str, float]) -> Iterator[str]:
    """Lines of a table: a header, the domains with the most tokens first, and their sum.

    drawn: the share of the samples that training draws of each domain. The first columns tell of the
    train split, then come fertility and parity (`corpus.fertility`) of both, and then two tell of the
    documents that are held out. For fine-tuning, two more have the share of the tokens that count, and
    with images two have their numbers.
    """
    tokens = {split: Counter[str]() for split in get_args(Split)}
    images = {split: Counter[str]() for split in get_args(Split)}
    for shard in manifest.shards:
        tokens[shard.split][shard.domain] += shard.tokens
        images[shard.split][shard.domain] += shard.images or 0
    counts = counts_of(
        manifest.text_tokens(), manifest.documents, manifest.characters, manifest.text_bytes
    )
    counts[ALL] = TextCounts(*map(sum, zip(*counts.values(), strict=True)))
    found = {row.domain: row for row in fertilities(counts)}
    domains = sorted(
        {group.partition("/")[2] for group in manifest.documents},
        key=lambda domain: (-tokens["train"][domain], domain),
    )
    whole = tokens["train"].total()
    counted = manifest.counted() if manifest.objective else None

    def row(name: str, group: list[str], drawn: float) -> tuple[str, ...]:
        documents, text_bytes, held_out = (
            sum(counts.get(f"{split}/{domain}", 0) for domain in group)
            for counts, split in (
                (manifest.documents, "train"),
                (manifest.text_bytes, "train"),
                (manifest.documents, "held_out"),
            )
        )
        trained, kept = (sum(tokens[split][d] for d in group) for split in ("train", "held_out"))
        return (
            name,
            f"{documents:,}",
            f"{text_bytes / 1e6:,.2f}",
            f"{trained:,}",
            f"{trained / whole:.2%}" if whole else ABSENT,
            f"{drawn:.2%}",
            *_fertility(found.get(name)),
            f"{held_out:,}",
            f"{kept:,}",
            *(_shares(counted, group, trained, kept) if counted else ()),
            *(_sums(images.values(), group) if manifest.images else ()),
        )

    rows = [row(domain, [domain], drawn.get(domain, 0.0)) for domain in domains]
    rows.append(row(ALL, domains, sum(drawn.values())))
    header = (
        *HEADER,
        *(COUNTED if counted else ()),
        *(IMAGES if manifest.images else ()),
    )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for name, *cells in (header, *rows):
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *padded])


def _sums(splits: Iterable[Mapping[str, int]], domains: list[str]) -> Iterator[str]:
    for found in splits:
        yield f"{sum(found[domain] for domain in domains):,}"


def _shares(
    counted: Mapping[str, int], domains: list[str], trained: int, held_out: int
) -> Iterator[str]:
    for split, tokens in (("train", trained), ("held_out", held_out)):
        those = sum(counted.get(f"{split}/{domain}", 0) for domain in domains)
        yield f"{those / tokens:.1%}" if tokens else ABSENT


def _fertility(found: Fertility | None) -> tuple[str, str, str]:
    if not found:
        return ABSENT, ABSENT, ABSENT
    parity = ABSENT if found.parity is None else f"{found.parity:.2f}"
    return f"{found.per_byte:.3f}", f"{found.per_character:.3f}", parity
