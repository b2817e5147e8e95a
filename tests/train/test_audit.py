"""The audit: PASS for every history in which each sample counts once, and only for those."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from phases import CORPUS, bare_manifest, phase
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.corpus.manifest import Images
from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.curriculum import Curriculum, Phase
from panthalassa.stream.ledger import Attempt, Consumed, Ledger, PassedOver, SampleHashes, digest_of
from panthalassa.train.audit import Report, audit, explain, keep_manifest

PHASES = [phase(0)]
HASHES = SampleHashes(CORPUS.shards)
Edit = Callable[[Consumed], Consumed | None]


def consumed(phases: list[Phase], step: int, leave_out: tuple[int, int] | None = None) -> Consumed:
    """What an honest step records; `leave_out` is a row group that could not be read."""
    (piece,) = Curriculum(phases, CORPUS).pieces(range(step, step + 1))
    sample = np.arange(piece.phase.global_batch)
    place = piece.order.locate(piece.positions(np.full_like(sample, step), sample))
    good = [(s, g) != leave_out for s, g in zip(place.shard, place.row_group, strict=True)]
    return Consumed(
        step=step,
        samples=sum(good),
        digest=digest_of(HASHES.limbs(place)[good].sum(axis=0)),
        quarantined=np.flatnonzero(~np.array(good)).tolist(),
    )


def attempt(
    run: Storage,
    number: int,
    steps: Iterable[int],
    phases: list[Phase] = PHASES,
    edit: Edit = lambda step: step,
    rollbacks: Sequence[tuple[int, int]] = (),
) -> None:
    steps = list(steps)
    keep_manifest(run, CORPUS)
    head = Attempt(
        attempt=number, first_step=steps[0], dp_size=number, tp_size=1, began=1e9, phases=phases
    )
    ledger = Ledger(run, head)
    for step in steps:
        if (record := edit(consumed(phases, step))) is not None:
            ledger.record(record)
        for first, end in rollbacks:
            if end == step + 1:
                ledger.record(PassedOver(first_step=first, end_step=end))


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def test_an_undisturbed_run_passes_with_its_epochs(run: Storage) -> None:
    attempt(run, 1, range(0, 50))
    report = audit(run, 50, PHASES)
    assert report.problems == []
    assert report.samples == 200
    epochs = [(e.domain, e.epoch, e.samples, e.of) for e in report.epochs]
    assert epochs[:2] == [("aa", 0, 30, 30), ("aa", 1, 30, 30)]
    assert sum(samples for _, _, samples, _ in epochs) == 200
    lines = list(explain(report))
    assert lines[0] == "50 steps, 200 samples, 1 attempt (data x tensor parallel: 1x1)"
    assert lines[1] == "  aa, 16 tokens: 2 whole epochs, 15 of 30 samples of epoch 3"
    assert lines[-1].startswith("PASS")


def test_crashes_and_resizes_pass_and_what_was_undone_is_listed(run: Storage) -> None:
    attempt(run, 1, range(0, 13))
    attempt(run, 2, range(10, 18))
    attempt(run, 3, range(10, 22))
    attempt(run, 4, range(20, 40))
    report = audit(run, 36, PHASES)
    assert report.problems == []
    undone = [
        (back.attempt, back.first_step, back.steps, back.samples) for back in report.rolled_back
    ]
    assert undone == [(1, 10, 3, 12), (2, 10, 8, 32), (3, 20, 2, 8)]
    assert report.unsaved == 4
    assert report.samples == 36 * 4


def test_an_attempt_that_was_undone_before_it_trained_does_not_matter(run: Storage) -> None:
    attempt(run, 1, range(0, 20))
    Ledger(run, Attempt(attempt=2, first_step=8, dp_size=1, tp_size=1, began=1e9, phases=PHASES))
    attempt(run, 3, range(8, 12))
    report = audit(run, 12, PHASES)
    assert report.passed
    assert [(back.first_step, back.steps) for back in report.rolled_back] == [(8, 12)]


@pytest.mark.parametrize("changed", [phase(8, temperature=3.0), phase(0, seed=2)])
def test_what_an_undone_attempt_had_planned_does_not_matter(run: Storage, changed: Phase) -> None:
    later = [phase(0), changed] if changed.first_step else [changed]
    attempt(run, 1, range(0, 10))
    attempt(run, 2, range(6 if changed.first_step else 0, 12), later)
    report = audit(run, 12, later)
    assert report.problems == []
    assert [back.attempt for back in report.rolled_back] == [1]


def test_phases_are_understood(run: Storage) -> None:
    phases = [
        phase(0),
        phase(10, temperature=4.0, global_batch=6),
        phase(20, sequence_length=8),
        phase(40),
        phase(50, seed=9),
    ]
    attempt(run, 1, range(0, 30), phases)
    attempt(run, 2, range(25, 60), phases)
    report = audit(run, 60, phases)
    assert report.problems == []
    assert {epoch.sequence_length for epoch in report.epochs} == {16, 8}


def other_sample(step: Consumed) -> Consumed:
    other = consumed(PHASES, step.step + 1).digest
    return step.model_copy(update={"digest": other}) if step.step == 7 else step


def one_less(step: Consumed) -> Consumed:
    return step.model_copy(update={"samples": 3}) if step.step == 7 else step


def hides_a_sample(step: Consumed) -> Consumed:
    return step.model_copy(update={"quarantined": [2]}) if step.step == 7 else step


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (other_sample, "step 8 was trained on 4 samples that are not the 4 of its positions"),
        (one_less, "step 8 was trained on 3 samples"),
        (hides_a_sample, "step 8 was trained on 4 samples that are not the 3 of its positions"),
        (lambda step: None if step.step in (5, 6) else step, "gap: no record of steps 6 to 7"),
        (lambda step: None if step.step == 19 else step, "gap: no record of step 20"),
        (lambda step: None if step.step == 0 else step, "gap: no record of step 1"),
    ],
)
def test_every_other_history_fails_by_its_step(run: Storage, edit: Edit, problem: str) -> None:
    attempt(run, 1, range(0, 20), edit=edit)
    report = audit(run, 20, PHASES)
    assert not report.passed
    assert problem in "\n".join(report.problems)
    assert list(explain(report))[-1].startswith("FAIL")


@pytest.mark.parametrize("gone", [1, 2])
def test_the_ledger_of_an_attempt_that_is_gone_is_missed(run: Storage, gone: int) -> None:
    """Also when all that it trained was undone."""
    for number in (1, 2, 3):
        attempt(run, number, range(0, 12))
    run.delete(f"ledger/{gone:06d}.jsonl")
    assert audit(run, 12, PHASES).problems == [f"the ledger of attempt {gone} is missing"]


def test_a_step_that_an_attempt_trained_twice_fails(run: Storage) -> None:
    attempt(run, 1, [0, 1, 2, 2, 3])
    assert "attempt 1 trained step 3 twice" in audit(run, 4, PHASES).problems


def test_steps_of_another_order_fail(run: Storage) -> None:
    attempt(run, 1, range(0, 10), [phase(0, seed=5)])
    report = audit(run, 10, PHASES)
    assert "attempt 1 had other data: seed is 5 there, 1 here" in report.problems
    assert sum("not the 4 of its positions" in line for line in report.problems) == 10


def test_an_order_that_is_no_permutation_fails(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks and audit share the order, so that one that repeats must show in the sums of an epoch."""
    from panthalassa.stream.order import Location, Order

    original = Order.locate

    def repeats(self: Order, positions: np.ndarray) -> Location:
        return original(self, positions - positions % 2)

    monkeypatch.setattr(Order, "locate", repeats)
    attempt(run, 1, range(0, 50))
    report = audit(run, 50, PHASES)
    assert any("is not each of its samples once" in line for line in report.problems)


def test_what_was_quarantined_is_listed_and_the_rest_counts(run: Storage) -> None:
    attempt(run, 1, range(0, 20), edit=lambda step: consumed(PHASES, step.step, (1, 0)))
    report = audit(run, 20, PHASES)
    assert report.problems == []
    assert report.quarantined == {("train/bb/0.parquet", 0): 80 - report.samples}
    lines = list(explain(report))
    assert lines[-1].endswith("but for the quarantined")
    assert any("row group 0 of train/bb/0.parquet" in line for line in lines)


def skipped(*steps: int) -> Edit:
    return lambda step: step.model_copy(update={"skipped": step.step in steps})


def test_what_the_guard_skipped_is_listed_and_counts_as_read(run: Storage) -> None:
    attempt(run, 1, range(0, 20), edit=skipped(3, 17))
    attempt(run, 2, range(15, 30), edit=skipped(20))
    report = audit(run, 25, PHASES)
    assert report.problems == []
    assert report.samples == 100
    lines = list(explain(report))
    assert [line for line in lines if "skipped by the guard" in line] == [
        "skipped by the guard: step 4, 4 samples",
        "skipped by the guard: step 21, 4 samples",
    ]
    assert lines[-1] == "PASS: each sample of each epoch exactly once, but for the skipped"


Passed = list[tuple[int, int]]


@pytest.mark.parametrize(
    ("rollbacks", "resumed", "end", "truth"),
    [
        ([(6, 10)], [], 20, [(6, 10)]),
        ([(6, 10), (10, 14), (14, 17)], [], 20, [(6, 10), (10, 14), (14, 17)]),
        ([(6, 10), (4, 15)], [], 20, [(4, 15)]),
        ([(6, 10)], [10], 20, [(6, 10)]),
        ([(6, 10)], [8], 20, []),  # it crashed before the checkpoint of step 10
        ([(6, 10), (4, 15)], [12], 20, [(6, 10)]),
        ([(6, 10)], [12, 9], 20, []),
        ([(6, 10)], [], 9, []),  # no checkpoint of step 10 yet
    ],
)
def test_rollbacks_hold_when_the_newest_checkpoint_knows_them(
    run: Storage, rollbacks: Passed, resumed: list[int], end: int, truth: Passed
) -> None:
    """A run that rolls back in its first attempt, and then goes on from the steps `resumed`."""
    attempt(run, 1, range(0, 20), rollbacks=rollbacks)
    for number, first in enumerate(resumed, 2):
        attempt(run, number, range(first, 20))
    report = audit(run, end, PHASES, truth)
    assert report.problems == []
    assert [(p.first_step, p.end_step) for p, _ in report.passed_over] == truth
    assert [samples for _, samples in report.passed_over] == [4 * (e - f) for f, e in truth]
    (problem,) = audit(run, end, PHASES, [*truth, (18, 19)]).problems
    assert "passes over" in problem


def test_a_manifest_that_was_changed_is_not_believed(run: Storage) -> None:
    attempt(run, 1, range(0, 5))
    name = f"manifests/{CORPUS.fingerprint}.json"
    run.write(name, run.read(name).replace(b'"rows": 30', b'"rows": 31'))
    with pytest.raises(PanthalassaError, match="or not the manifest with that SHA-256"):
        audit(run, 5, PHASES)


def test_the_command_names_a_run_that_is_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["audit", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert f"no run with a checkpoint at {tmp_path}/nothing" in result.stderr


def test_no_more_problems_are_printed_than_people_read() -> None:
    report = Report(steps=1000, problems=[f"step {step} is wrong" for step in range(1000)])
    lines = list(explain(report))
    assert len(lines) < 30
    assert "and 980 problems more" in lines


PAIRS = bare_manifest(
    [CORPUS.shards[0], CORPUS.shards[1].model_copy(update={"images": 70})], 16
).model_copy(update={"images": Images(size=4, tokens=3)})


def attempt_with_images(
    run: Storage, edit: Callable[[int], int], image_share: float = 0.25
) -> Report:
    """Ten steps of texts ("aa") and pairs ("bb"); `edit` changes what is told of a step's images."""
    phases = [phase(0, corpus=PAIRS.fingerprint, image_share=image_share)]
    (piece,) = Curriculum(phases, PAIRS).pieces(range(10))
    keep_manifest(run, PAIRS)
    head = Attempt(attempt=1, first_step=0, dp_size=1, tp_size=1, began=1e9, phases=phases)
    ledger = Ledger(run, head)
    for step in range(10):
        place = piece.order.locate(piece.positions(np.full(4, step), np.arange(4)))
        digest = digest_of(SampleHashes(PAIRS.shards).limbs(place).sum(axis=0))
        images = edit(int((place.shard == 1).sum()))
        ledger.record(Consumed(step=step, samples=4, digest=digest, images=images))
    return audit(run, 10, phases)


def test_samples_with_images_are_counted_again(run: Storage) -> None:
    report = attempt_with_images(run, lambda images: images)
    assert report.problems == []
    assert 8 <= report.images <= 12
    first, *_ = explain(report)
    assert first.startswith(f"10 steps, 40 samples ({report.images} with images),")


def test_a_forged_number_of_images_fails(run: Storage) -> None:
    report = attempt_with_images(run, lambda images: images + (images == 1))
    assert report.problems
    expected = "was trained on 4 samples (2 with images) that are not the 4 (1 with images) of its"
    assert all(expected in problem for problem in report.problems)


def test_a_ledger_that_says_nothing_of_images_is_one_of_text(run: Storage) -> None:
    """As those from before there were any: their lines stay the same, and are still believed."""
    attempt(run, 1, range(0, 10))
    lines = run.read("ledger/000001.jsonl").decode()
    assert "image" not in lines
    report = audit(run, 10, PHASES)
    assert (report.passed, report.images) == (True, 0)
    assert attempt_with_images(open_storage(f"{run.uri}-pairs"), lambda images: 0).problems


def test_another_share_of_images_is_other_data(run: Storage) -> None:
    attempt_with_images(run, lambda images: images)
    phases = [phase(0, corpus=PAIRS.fingerprint, image_share=0.5)]
    problems = audit(run, 10, phases).problems
    assert "attempt 1 had other data: image_share is 0.25 there, 0.5 here" in problems
