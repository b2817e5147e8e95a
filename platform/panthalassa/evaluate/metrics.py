"""From the numbers of single items to one number: what sums a metric up.

In come the numbers of n items, [n, k] with the k that a metric has for an item; out comes one figure.
All that a metric needs is in these rows, so that resampling items (`intervals.py`) is resampling rows.
Texts are counted once, before: BLEU and chrF are functions of sums over sentences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2


@dataclass(frozen=True)
class Aggregate:
    """What makes one figure of the numbers of items, and how that is told."""

    of: Callable[[Floats], float]
    scale: float = 1.0
    """By which it is multiplied before it is shown: shares are told in points of a hundred."""
    unit: str = "points"
    digits: int = 1
    lower_is_better: bool = False

    def __call__(self, numbers: Floats) -> float:
        return self.of(numbers)


def mean(numbers: Floats) -> float:
    """Of [n, 1]."""
    return float(numbers[:, 0].mean())


def ratio(numbers: Floats) -> float:
    """The first column's sum over the second's, such as right tokens over tokens; 0 of nothing."""
    above, below = numbers.sum(axis=0)
    return float(above / below) if below else 0.0


def accuracy(numbers: Floats) -> float:
    """The share of items whose prediction (first column) is the target (second)."""
    return float((numbers[:, 0] == numbers[:, 1]).mean())


def f1_of_counts(numbers: Floats) -> float:
    """From (right, predicted, wanted) by item: micro F1 = 2 right / (predicted + wanted)."""
    right, predicted, wanted = numbers.sum(axis=0)
    return float(2 * right / (predicted + wanted)) if predicted + wanted else 0.0


def binary_f1(numbers: Floats) -> float:
    """F1 of the class 1, from (prediction, target); 0 where neither has it."""
    predicted, wanted = numbers[:, 0] == 1, numbers[:, 1] == 1
    found = predicted.sum() + wanted.sum()
    return float(2 * (predicted & wanted).sum() / found) if found else 0.0


def macro_f1(numbers: Floats) -> float:
    """The mean of the F1 of each class that occurs, from (prediction, target)."""
    table = _confusion(numbers)
    return float((2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))).mean())


def matthews(numbers: Floats) -> float:
    """Matthews correlation of (prediction, target), of any number of classes (Gorodkin 2004).

    0 where one of the two has a single class.
    """
    table = _confusion(numbers)
    predicted, wanted, n = table.sum(axis=1), table.sum(axis=0), table.sum()
    spread = (n**2 - predicted @ predicted) * (n**2 - wanted @ wanted)
    return float((np.trace(table) * n - predicted @ wanted) / math.sqrt(spread)) if spread else 0.0


def pearson(numbers: Floats) -> float:
    """Of two columns; 0 where one is constant, and so says nothing of the other."""
    first, second = (numbers - numbers.mean(axis=0)).T
    spread = math.sqrt((first @ first) * (second @ second))
    return float(first @ second / spread) if spread else 0.0


def spearman(numbers: Floats) -> float:
    """Pearson's correlation of ranks; equal numbers share theirs."""
    return pearson(stats.rankdata(numbers, axis=0))


def bleu(numbers: Floats) -> float:
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, from the counts of each sentence:
    (its length, the reference's, right n-grams of orders 1 to 4, its n-grams of these orders).

    An order without any right n-gram counts as half, a quarter, … of one (NIST's smoothing), as
    sacrebleu does it; without a single right word it is 0.
    """
    length, reference, *counts = numbers.sum(axis=0).tolist()
    right, found = counts[:BLEU_ORDER], counts[BLEU_ORDER:]
    if not any(right) or not all(found):
        return 0.0
    log_precision, part = 0.0, 1.0
    for hits, total in zip(right, found, strict=True):
        if not hits:
            part /= 2
        log_precision += math.log((hits or part) / total) / BLEU_ORDER
    brevity = min(0.0, 1 - reference / length)
    return 100 * math.exp(log_precision + brevity)


def chrf(numbers: Floats) -> float:
    """Corpus chrF (Popović 2015), 0 to 100, of character n-grams of orders 1 to 6, beta 2, from
    (n-grams of the text, of the reference, of both) by order of each sentence."""
    ours, reference, both = numbers.sum(axis=0).reshape(CHRF_ORDER, 3).T
    known = (ours > 0) & (reference > 0)
    if not both.any():
        return 0.0
    precision = float((both[known] / ours[known]).mean())
    recall = float((both[known] / reference[known]).mean())
    weight = CHRF_BETA**2
    return 100 * (1 + weight) * precision * recall / (weight * precision + recall)


def bits_per_byte(numbers: Floats) -> float:
    """From (nats, bytes of UTF-8) by text: what a model needs for a byte, whatever its tokens are."""
    nats, size = numbers.sum(axis=0)
    return float(nats / (math.log(2) * size))


def perplexity(numbers: Floats) -> float:
    """From (nats, tokens) by text, infinite beyond 709 nats a token. Only models with one tokenizer are
    compared by it."""
    nats, tokens = numbers.sum(axis=0)
    with np.errstate(over="ignore"):
        return float(np.exp(nats / tokens))


def _confusion(numbers: Floats) -> Floats:
    """How often each class was predicted [row] where each [column] was right."""
    classes, number = np.unique(numbers, return_inverse=True)
    prediction, target = number.reshape(numbers.shape).T
    size = len(classes)
    counts = np.bincount(prediction * size + target, minlength=size * size)
    return counts.reshape(size, size).astype(np.float64)


AGGREGATES: dict[str, Aggregate] = {
    "mean": Aggregate(mean, 100),
    "ratio": Aggregate(ratio, 100),
    "accuracy": Aggregate(accuracy, 100),
    "f1-of-counts": Aggregate(f1_of_counts, 100),
    "binary-f1": Aggregate(binary_f1, 100),
    "macro-f1": Aggregate(macro_f1, 100),
    "matthews": Aggregate(matthews, 100),
    "pearson": Aggregate(pearson, 100),
    "spearman": Aggregate(spearman, 100),
    "bleu": Aggregate(bleu),
    "chrf": Aggregate(chrf),
    "bits-per-byte": Aggregate(bits_per_byte, unit="bits", digits=4, lower_is_better=True),
    "perplexity": Aggregate(perplexity, unit="", digits=2, lower_is_better=True),
}
"""By name, as tasks name them."""
