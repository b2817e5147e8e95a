"""What a tokenizer makes of each domain: counts come in, fertility and parity go out.

Fertility is tokens a character and tokens a byte of text. Parity is what a domain costs beside the
reference, English: the ratio of their tokens for the same content (the premium of Petrov et al. 2023,
section 3). That takes parallel text; without it the ratio of tokens a character stands in its place
and says so: it is fair among alphabets, and too high for scripts that write a word in one character.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from panthalassa.corpus.manifest import Manifest

REFERENCE = "en"

Basis = Literal["parallel text", "tokens a character"]


@dataclass(frozen=True)
class TextCounts:
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
    reference: str = REFERENCE,
) -> list[Fertility]:
    """Of each domain with text, by name.

    parallel: tokens of the same content in some domains; used where it has the domain and the
    reference.
    """
    counts = {domain: found for domain, found in sorted(counts.items()) if found.characters}
    same = {domain: n for domain, n in (parallel or {}).items() if n}
    rows = []
    for domain, found in counts.items():
        per_character = found.tokens / found.characters
        parity: float | None = None
        basis: Basis = "tokens a character"
        if domain in same and reference in same:
            parity, basis = same[domain] / same[reference], "parallel text"
        elif reference in counts:
            parity = per_character / (counts[reference].tokens / counts[reference].characters)
        per_byte = found.tokens / found.text_bytes
        rows.append(Fertility(domain, found.tokens, per_character, per_byte, parity, basis))
    return rows


def worst_parity(rows: Iterable[Fertility]) -> Fertility | None:
    """The domain that costs most beside the reference, by parallel text if any has it."""
    compared = [row for row in rows if row.parity is not None]
    parallel = [row for row in compared if row.basis == "parallel text"]
    return max(parallel or compared, key=lambda row: row.parity or 0, default=None)


def counts_of(manifest: Manifest) -> dict[str, TextCounts]:
    """What each domain of a corpus holds, both splits together."""
    tokens, characters, text_bytes = Counter[str](), Counter[str](), Counter[str]()
    for shard in manifest.shards:
        tokens[shard.domain] += shard.tokens
    for group, documents in manifest.documents.items():
        domain = group.split("/")[1]
        tokens[domain] -= 2 * documents  # bos and eos
        characters[domain] += manifest.characters[group]
        text_bytes[domain] += manifest.text_bytes[group]
    return {
        domain: TextCounts(tokens[domain], characters[domain], text_bytes[domain])
        for domain in tokens
    }
