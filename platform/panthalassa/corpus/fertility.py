"""What a tokenizer makes of each domain: counts come in, fertility and parity go out.

Fertility is tokens a character and tokens a byte of text. Parity is what a domain costs beside the
reference, English: the ratio of their tokens for the same content (the premium of Petrov et al. 2023,
section 3). That takes parallel text; without it the ratio of tokens a character stands in its place
and says so: it is fair among alphabets, and too high for scripts that write a word in one character.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

REFERENCES = ("en", "eng", "eng_Latn")
"""English, by the names that domains have."""

Basis = Literal["parallel text", "tokens a character"]


class TextCounts(NamedTuple):
    """Some text in Unicode characters, in bytes of UTF-8, and in tokens without delimiters."""

    tokens: int
    characters: int
    text_bytes: int


@dataclass(frozen=True)
class Fertility:
    """Of one domain. `parity` is None where there is no text of the reference to compare with."""

    domain: str
    tokens: int
    per_character: float
    per_byte: float
    parity: float | None
    basis: Basis


def fertilities(
    counts: Mapping[str, TextCounts],
    parallel: Mapping[str, int] | None = None,
) -> list[Fertility]:
    """Of each domain with text, by name; the reference is the first of REFERENCES that there is.

    parallel: tokens of the same content in some domains; used where it has the domain and the
    reference.
    """
    counts = {domain: found for domain, found in sorted(counts.items()) if found.characters}
    same = {domain: n for domain, n in (parallel or {}).items() if n}
    reference = next((name for name in REFERENCES if name in counts), None)
    rows = []
    for domain, found in counts.items():
        per_character = found.tokens / found.characters
        parity: float | None = None
        basis: Basis = "tokens a character"
        if domain in same and reference in same:
            parity, basis = same[domain] / same[reference], "parallel text"
        elif reference:
            parity = per_character / (counts[reference].tokens / counts[reference].characters)
        per_byte = found.tokens / found.text_bytes
        rows.append(Fertility(domain, found.tokens, per_character, per_byte, parity, basis))
    return rows


def worst_parity(rows: Iterable[Fertility]) -> Fertility | None:
    """The domain that costs most beside the reference, by parallel text if any has it."""
    compared = [row for row in rows if row.parity is not None]
    parallel = [row for row in compared if row.basis == "parallel text"]
    return max(parallel or compared, key=lambda row: row.parity or 0, default=None)


def counts_of(
    tokens: Mapping[str, int],
    documents: Mapping[str, int],
    characters: Mapping[str, int],
    text_bytes: Mapping[str, int],
) -> dict[str, TextCounts]:
    """What each domain of a corpus holds, both splits together; all are counted by `{split}/{domain}`,
    and each document has two tokens that are delimiters."""
    sums = [Counter[str]() for _ in range(3)]
    for group in documents:
        domain = group.partition("/")[2]
        found = (
            tokens.get(group, 0) - 2 * documents[group],
            characters.get(group, 0),
            text_bytes[group],
        )
        for counter, count in zip(sums, found, strict=True):
            counter[domain] += count
    return {domain: TextCounts(*(counter[domain] for counter in sums)) for domain in sums[0]}
