import json
from pathlib import Path

import numpy as np
import pytest
from evaluations import MODEL, right_or_wrong, written
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from panthalassa.config_evaluation import Asked
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.compare import (
    compare,
    compare_scores,
    holm,
    left_out,
    mcnemar,
    settings_that_differ,
)
from panthalassa.evaluate.intervals import interval
from panthalassa.evaluate.questions import read_questions
from panthalassa.evaluate.results import Scores, scores, write_results
from panthalassa.evaluate.task import Likely
from panthalassa.storage import Storage, open_storage

TRIALS = 150


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_a_difference_is_told_with_its_interval_and_the_number_of_items(storage: Storage) -> None:
    written(storage.below("a"), t=right_or_wrong([n % 2 == 0 for n in range(512)]))
    written(storage.below("b"), t=right_or_wrong([n % 2 == 0 or n % 12 == 1 for n in range(512)]))
    (found,) = compare(storage.below("a"), storage.below("b"))
    assert str(found) == "+8.4 points (95 % 6.1 to 10.7, 512 items)"
    assert found.p < 1e-9
    (back,) = compare(storage.below("b"), storage.below("a"))
    assert str(back) == "-8.4 points (95 % -10.7 to -6.1, 512 items)"


def test_no_difference_is_claimed_when_the_interval_holds_zero(storage: Storage) -> None:
    written(storage.below("a"), t=right_or_wrong([True, False, True, False] * 10))
    written(storage.below("b"), t=right_or_wrong([False, True, True, False] * 9 + [True] * 4))
    (found,) = compare(storage.below("a"), storage.below("b"))
    assert found.low <= 0 <= found.high
    assert "; no difference is shown" in str(found)
    assert found.p > 0.05


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_difference_that_chance_explains_is_not_shown(storage: Storage, part: float) -> None:
    def always(value: float, n: int) -> Scores:
        return scores({"m": "mean"}, ((f"{k}", "", {"m": (value,)}) for k in range(n)))

    for n, shown in ((1, False), (2, False), (5, False), (8, True)):
        folder = storage.below(str(n))
        written(folder.below("a"), t=always(0, n))
        written(folder.below("b"), t=always(part, n))
        (found,) = compare(folder.below("a"), folder.below("b"))
        assert (found.p < 0.05) == found.shown == shown
        assert ("no difference is shown" in str(found)) != shown
        assert ("one item has no interval" in str(found)) == (n == 1)


def test_the_order_of_items_does_not_matter_and_only_shared_ones_count(storage: Storage) -> None:
    right = [True, False, False, True, True]
    rows = [(f"item-{n}", "", {"accuracy": (float(hit),)}) for n, hit in enumerate(right)]
    written(storage.below("a"), t=right_or_wrong(right))
    shuffled = scores(
        {"accuracy": "mean"}, [*rows[3:], *rows[1:3], ("new", "", {"accuracy": (1,)})]
    )
    written(storage.below("b"), t=shuffled)
    (found,) = compare(storage.below("a"), storage.below("b"))
    assert (found.items, found.only_a, found.only_b) == (4, 1, 1)
    assert found.a == found.b == 0.5
    assert found.p == 1
    (line,) = left_out([found])
    assert "1 items are only in the first evaluation and 1 only in the second" in line


def asked(folder: Path, rows: list[tuple[str, int]]) -> Scores:
    folder.mkdir()
    lines = [{"prompt": said, "choices": ["yes", "no"], "answer": right} for said, right in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = read_questions([Asked(name="choices", data=str(folder))])
    return questions.scores(lambda asked: [Likely(0.0, True, 1)] * len(asked), print)["choices"]


def test_only_equal_questions_are_paired(storage: Storage, tmp_path: Path) -> None:
    before = asked(tmp_path / "before", [("is it", 0), ("was it", 1), ("will it", 0)])
    after = asked(tmp_path / "after", [("is it", 0), ("can it", 1), ("will it", 1)])
    (found, _) = compare_scores("choices", before, after)
    assert (found.items, found.only_a, found.only_b) == (1, 2, 2)
    again = asked(tmp_path / "again", [("is it", 0), ("was it", 1), ("will it", 0)])
    assert again.ids == before.ids


def test_settings_that_differ_are_told(storage: Storage) -> None:
    found, a, b = {"t": right_or_wrong([True, False])}, storage.below("a"), storage.below("b")
    entry = {"name": "t", "data": "x", "limit": None, "settings": {}}
    write_results(a, MODEL, {"chat": False, "length": 64, "tasks": [entry]}, found)
    other = {**entry, "data": "y", "settings": {"num_fewshot": 3}}
    write_results(b, MODEL, {"chat": True, "length": 64, "tasks": [other]}, found)
    chat, shots = settings_that_differ(a, b)
    assert chat == "chat differs: False in the first evaluation, True in the second"
    assert shots.startswith("t: settings differs: {} in the first evaluation, {'num_fewshot': 3}")
    assert not list(settings_that_differ(a, a))


def test_nothing_in_common_is_an_error(storage: Storage) -> None:
    written(storage.below("a"), t=right_or_wrong([True], ids="x"))
    written(storage.below("b"), t=right_or_wrong([True], ids="y"))
    with pytest.raises(PanthalassaError, match="no item of a task and metric in common"):
        compare(storage.below("a"), storage.below("b"))


def test_perplexities_of_two_tokenizers_are_not_compared() -> None:
    def texts(tokens: float) -> Scores:
        metrics = {"bits_per_byte": "bits-per-byte", "perplexity": "perplexity"}
        numbers = {"bits_per_byte": (9.0, 8.0), "perplexity": (9.0, tokens)}
        return scores(metrics, [("a", "", numbers), ("b", "", numbers)])

    same = compare_scores("t", texts(3), texts(3))
    assert [found.metric for found in same] == ["bits_per_byte", "perplexity"]
    other = compare_scores("t", texts(3), texts(4))
    assert [found.metric for found in other] == ["bits_per_byte"]


def test_mcnemar_is_the_binomial_test_of_the_items_that_differ() -> None:
    a = np.array([1.0] * 9 + [0] * 2 + [1, 0] * 20)
    b = np.array([0.0] * 9 + [1] * 2 + [1, 0] * 20)
    assert mcnemar(a, b) == pytest.approx(0.06543, abs=1e-5)  # 2 (1 + 11 + 55) / 2^11
    assert mcnemar(a, a) == 1


def test_holm_is_his_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_correction_never_makes_more_of_a_difference_and_keeps_their_order(
    p: list[float],
) -> None:
    corrected = holm(p)
    assert all(after >= before for before, after in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert max(corrected) <= 1


def at_least(hits: int, rate: float = 0.95) -> bool:
    """Whether so many of TRIALS are what a rate gives, but for one case in a thousand."""
    return bool(stats.binom.cdf(hits, TRIALS, rate) > 1e-3)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_intervals_of_an_accuracy_cover_the_truth(rate: float) -> None:
    generator, covered = np.random.default_rng(7), 0
    for _ in range(TRIALS):
        low, high = interval("mean", (generator.random((100, 1)) < rate).astype(float))
        covered += low <= rate <= high
    assert at_least(covered, 0.93)  # the percentile bootstrap of a hundred items is a little narrow
    assert covered < TRIALS  # and not so wide that it says nothing


def test_intervals_of_bits_per_byte_cover_the_truth() -> None:
    generator, covered = np.random.default_rng(8), 0
    for _ in range(TRIALS):
        size = generator.integers(50, 500, 100)
        nats = size * generator.gamma(4, 0.2 * np.log(2), 100)  # 0.8 bits a byte in the mean
        low, high = interval("bits-per-byte", np.stack((nats, size), axis=1))
        covered += low <= 0.8 <= high
    assert at_least(covered, 0.93)
    assert covered < TRIALS


@pytest.mark.parametrize("truth", [0.0, 0.1])
def test_intervals_of_a_difference_cover_the_truth_and_false_alarms_are_as_rare_as_said(
    truth: float,
) -> None:
    generator, covered, alarms = np.random.default_rng(9), 0, 0
    for _ in range(TRIALS):
        difficulty = generator.random(200)
        noise_a, noise_b = generator.random((2, 200))
        a = 0.5 * difficulty + 0.5 * noise_a < 0.5
        # What the triangular sum of two uniforms has below 0.5 + shift: 1 - 2 (0.5 - shift)^2.
        b = 0.5 * difficulty + 0.5 * noise_b < 0.5 + (0.5 - np.sqrt((0.5 - truth) / 2))
        (found,) = compare_scores("t", right_or_wrong(a.tolist()), right_or_wrong(b.tolist()))
        covered += found.low <= truth <= found.high
        alarms += found.p < 0.05
    assert at_least(covered, 0.94)
    if truth == 0:
        assert at_least(TRIALS - alarms)
    else:
        assert alarms > TRIALS / 3


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_the_interval_of_what_never_varies_is_that_of_the_binomial(right: float) -> None:
    exact = stats.binomtest(int(20 * right), 20).proportion_ci(0.95, "exact")
    assert interval("mean", np.full((20, 1), right)) == pytest.approx((exact.low, exact.high))
    target = np.arange(20) % 3
    pairs = np.stack((target + 1 - right, target), axis=1)
    assert interval("accuracy", pairs) == pytest.approx((exact.low, exact.high))
