"""The same work by datatrove 0.10.1, where it is installed, on a part of the same documents.

    pip install --target FOLDER datatrove==0.10.1 spacy nltk; PYTHONPATH=FOLDER …

Its rules after Gopher, C4 and FineWeb, once with its own words (spaCy's, for English) and once with
those that white space delimits, and its masking of e-mail and IP addresses.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console


def compare(console: Console, texts: list[str], megabytes: float) -> dict[str, float]:
    """Print MB of text a CPU-second of each, on about so many MB of the texts, drawn evenly; the same by
    name, or nothing where datatrove is not installed."""
    try:
        from datatrove.data import Document
        from datatrove.pipeline.formatters import PIIFormatter
    except ImportError as error:
        print(f"datatrove is not here to compare with: {error}", file=sys.stderr)
        return {}
    whole = sum(len(text.encode()) for text in texts) / 1e6
    drawn = texts[:: max(1, round(whole / megabytes))]
    size = sum(len(text.encode()) for text in drawn) / 1e6
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(drawn)]
    masking = PIIFormatter()
    sides: dict[str, Callable[[Any], Any]] = {
        "rules, words of spaCy": _rules(),
        "rules, words by white space": _rules(str.split),
        "masking": lambda document: masking.format(document.text),
    }
    rates = {}
    for name, side in sides.items():
        side(documents[0])  # loads what it needs
        start = time.process_time()
        for document in documents:
            side(document)
        rates[name] = size / (time.process_time() - start)
        console.print(f"datatrove, {name}: {rates[name]:.2f} MB/s of {size:.1f} MB")
    return rates


def _rules(split: Callable[[str], list[str]] | None = None) -> Callable[[Any], Any]:
    from datatrove.pipeline import filters
    from datatrove.pipeline.filters import (
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )
    from datatrove.utils.text import split_into_words

    rules = [
        filters.GopherQualityFilter(),
        filters.GopherRepetitionFilter(),
        filters.C4QualityFilter(),
        filters.FineWebQualityFilter(),
    ]

    def words(text: str, language: str) -> list[str]:
        return split(text) if split else split_into_words(text, language)

    def judged(document: Any) -> list[Any]:
        for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
            module.split_into_words = words
        return [rule.filter(document) for rule in rules]

    return judged
