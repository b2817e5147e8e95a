"""What was trained on by language: as the samples themselves say, whatever happened to the run."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from phases import CORPUS, phase

from panthalassa.errors import PanthalassaError
from panthalassa.report.languages import languages
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.curriculum import Curriculum, Phase
from panthalassa.stream.ledger import Attempt, Consumed, Ledger, PassedOver
from panthalassa.train.audit import keep_manifest

PHASES = [phase(0), phase(10, temperature=4.0, global_batch=6), phase(20, sequence_length=8)]


def attempt(
    run: Storage,
    number: int,
    steps: range,
    changes: dict[int, dict[str, object]],
    back: tuple[int, int] | None = None,
) -> None:
    keep_manifest(run, CORPUS)
    head = Attempt(
        attempt=number, first_step=steps[0], dp_size=1, tp_size=1, began=1e9, phases=PHASES
    )
    ledger = Ledger(run, head)
    for step in steps:
        line = Consumed(step=step, samples=4, digest="0" * 32)
        ledger.record(line.model_copy(update=changes.get(step, {})))
    if back:
        ledger.record(PassedOver(first_step=back[0], end_step=back[1]))
    ledger.flush()


def walked(phases: list[Phase], steps: list[int], masked: dict[int, list[int]]) -> Counter[str]:
    """Sample by sample."""
    found: Counter[str] = Counter()
    for step in steps:
        (piece,) = Curriculum(phases, CORPUS).pieces(range(step, step + 1))
        sample = np.setdiff1d(np.arange(piece.phase.global_batch), masked.get(step, []))
        place = piece.order.locate(piece.positions(np.full_like(sample, step), sample))
        found.update(piece.order.domains[number].name for number in place.domain)
    return found


def test_repeated_skipped_masked_and_passed_over_samples_do_not_count(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    attempt(run, 1, range(0, 14), {3: {"skipped": True}, 12: {"skipped": True}})
    attempt(run, 2, range(9, 26), {11: {"quarantined": [0, 2]}, 22: {"quarantined": [1]}}, (15, 18))
    steps = [step for step in range(26) if step != 3 and not 15 <= step < 18]
    expected = walked(PHASES, steps, {11: [0, 2], 22: [1]})
    found = languages(run)
    assert {language.name: language.samples for language in found} == expected
    assert found[0].samples >= found[-1].samples
    late = walked(PHASES, list(range(20, 26)), {22: [1]})
    assert {language.name: language.positions for language in found} == {
        name: 16 * (expected[name] - late[name]) + 8 * late[name] for name in expected
    }


def test_a_run_that_has_trained_nothing_has_no_languages(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    Ledger(run, Attempt(attempt=1, first_step=0, dp_size=1, tp_size=1, began=1e9, phases=PHASES))
    assert languages(run) == []


def test_a_missing_ledger_and_a_missing_manifest_are_named(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    with pytest.raises(PanthalassaError, match="no ledger of samples"):
        languages(run)
    attempt(run, 1, range(0, 3), {})
    run.delete("manifests")
    with pytest.raises(PanthalassaError, match=r"manifests/.* is missing"):
        languages(run)
