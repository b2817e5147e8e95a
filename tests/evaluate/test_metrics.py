import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sk

from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.text_metrics import bleu_counts, chrf_counts

classes = arrays(
    np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.sampled_from([0.0, 1, 2])
)
words = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "größe", "мир", "."]),
    min_size=1,
    max_size=9,
)
pairs = st.lists(st.tuples(words.map(" ".join), words.map(" ".join)), min_size=1, max_size=6)


@given(classes)
@pytest.mark.filterwarnings("ignore:A single label")
def test_classification_metrics_are_scikit_learns(numbers: np.ndarray) -> None:
    predicted, target = numbers.T
    assert AGGREGATES["accuracy"](numbers) == pytest.approx(sk.accuracy_score(target, predicted))
    macro = sk.f1_score(target, predicted, average="macro", zero_division=0)
    assert AGGREGATES["macro-f1"](numbers) == pytest.approx(macro)
    assert AGGREGATES["matthews"](numbers) == pytest.approx(sk.matthews_corrcoef(target, predicted))
    binary = sk.f1_score(target == 1, predicted == 1, zero_division=0)
    assert AGGREGATES["binary-f1"](numbers) == pytest.approx(binary)


@given(arrays(np.float64, st.tuples(st.integers(3, 40), st.just(2)), elements=st.integers(-5, 5)))
def test_correlations_are_scipys(numbers: np.ndarray) -> None:
    if np.ptp(numbers, axis=0).min() == 0:
        assert AGGREGATES["pearson"](numbers) == AGGREGATES["spearman"](numbers) == 0
        return
    assert AGGREGATES["pearson"](numbers) == pytest.approx(stats.pearsonr(*numbers.T).statistic)
    assert AGGREGATES["spearman"](numbers) == pytest.approx(stats.spearmanr(*numbers.T).statistic)


@given(pairs)
def test_bleu_and_chrf_of_sums_are_sacrebleus_of_the_corpus(texts: list[tuple[str, str]]) -> None:
    ours, references = zip(*texts, strict=True)
    counts = np.array([bleu_counts(*pair) for pair in texts], np.float64)
    expected = sacrebleu.corpus_bleu(ours, [references], lowercase=True).score
    assert AGGREGATES["bleu"](counts) == pytest.approx(expected, abs=1e-9)
    counts = np.array([chrf_counts(*pair) for pair in texts], np.float64)
    expected = sacrebleu.corpus_chrf(ours, [references]).score
    assert AGGREGATES["chrf"](counts) == pytest.approx(expected, abs=1e-9)


def test_an_empty_answer_has_no_bleu_and_no_chrf() -> None:
    assert AGGREGATES["bleu"](np.array([bleu_counts("", "the cat")], np.float64)) == 0
    assert AGGREGATES["chrf"](np.array([chrf_counts("", "the cat")], np.float64)) == 0


def test_sums_come_before_quotients() -> None:
    numbers = np.array([[1.0, 1.0], [0.0, 3.0]])
    assert AGGREGATES["ratio"](numbers) == 0.25
    assert AGGREGATES["ratio"](np.zeros((2, 2))) == 0
    assert AGGREGATES["f1-of-counts"](np.array([[1.0, 2, 1], [1, 1, 4]])) == 0.5


def test_a_uniform_model_over_bytes_has_eight_bits_each() -> None:
    sizes = np.array([3.0, 17.0])
    numbers = np.stack((sizes * math.log(256), sizes), axis=1)
    assert AGGREGATES["bits-per-byte"](numbers) == pytest.approx(8)
    assert AGGREGATES["perplexity"](numbers) == pytest.approx(256)
