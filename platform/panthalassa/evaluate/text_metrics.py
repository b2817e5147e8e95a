"""What a text has in common with a reference, counted once by well-kept libraries.

sacrebleu counts for BLEU and chrF, whose formulas over sums are in `metrics.py`; rouge-score gives
ROUGE. Its own tokenizer drops all letters but a to z, so it gets one for all scripts here. The libraries
are part of the package's extra `evaluate`, and only loaded when they are used.
"""

import importlib
import re
import unicodedata
from functools import cache
from typing import Any

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Numbers

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that put no spaces between words."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
ROUGES = ("rouge1", "rouge2", "rougeL")


class UnicodeWords:
    """A tokenizer for rouge-score: words without case, marks kept; letters where none are spaced."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def bleu_counts(text: str, reference: str) -> Numbers:
    """For `metrics.bleu`: without case, as XGLUE's evaluation has it, in the tokens of mteval-v13a."""
    found = _sacrebleu_bleu().corpus_score([text], [[reference]])
    return (found.sys_len, found.ref_len, *found.counts, *found.totals)


def chrf_counts(text: str, *references: str) -> Numbers:
    """For `metrics.chrf`; of several references the one that is the nearest."""
    listed = [[reference] for reference in references]
    (found,) = _sacrebleu_chrf()._extract_corpus_statistics([text], listed)
    return tuple(found)


def rouge(text: str, reference: str) -> dict[str, float]:
    """The F-measures of ROUGE-1, -2 and -L (Lin 2004), 0 to 1."""
    found = _rouge_scorer().score(reference, text)
    return {name: float(found[name].fmeasure) for name in ROUGES}


@cache
def _sacrebleu_bleu() -> Any:
    return _library("sacrebleu").BLEU(lowercase=True)


@cache
def _sacrebleu_chrf() -> Any:
    return _library("sacrebleu").CHRF()


@cache
def _rouge_scorer() -> Any:
    scorer = _library("rouge_score.rouge_scorer")
    return scorer.RougeScorer(list(ROUGES), tokenizer=UnicodeWords())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PanthalassaError(
            f"{name.partition('.')[0]} is not installed, which counts what texts have in common: "
            'pip install "panthalassa[evaluate]"'
        ) from error
