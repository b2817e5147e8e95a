"""The audit of a run: was each sample trained on exactly once in each epoch?

It goes by what was recorded, not by what the platform says of itself. The surviving history of a run
is, for each step up to the newest checkpoint, the last attempt that trained it; what an earlier attempt
trained from there on was rolled back. The audit then shows three things. Every step survives exactly
once. Each was given just the samples that stand at its positions: their hashes add up to the digest
that the ranks recorded. And the samples at all these positions make up whole epochs: for each domain and
epoch their hashes, with those of the samples that are still to come in an epoch that has not ended, add
up to the sum over the manifest.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np

from panthalassa.corpus.manifest import MANIFEST, MANIFESTS, Manifest, read_manifest
from panthalassa.errors import CheckpointError, CorpusError
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Curriculum, Phase, Piece, differences, until
from panthalassa.stream.ledger import (
    Account,
    Consumed,
    Limbs,
    PassedOver,
    SampleHashes,
    accounts,
    digest_of,
)
from panthalassa.stream.order import Domain, Integers, Location, Order
from panthalassa.train.audit_words import counted, named_ranges, named_steps, with_images
from panthalassa.train.checkpoint import candidates, read_commit

CHUNK = 1 << 18
"""Samples that are looked at together."""

MOST_PROBLEMS = 20
"""Problems that are shown."""


def keep_manifest(run: Storage, manifest: Manifest) -> None:
    """Keep a corpus's manifest with a run, so that the audit does not depend on the corpus."""
    name, content = f"{MANIFESTS}/{manifest.fingerprint}.json", manifest.encode()
    if not run.exists(name) or run.read(name, manifest.fingerprint) != content:
        run.write(name, content)


@dataclass(frozen=True)
class RolledBack:
    """Steps that an attempt trained and that a later one trained again."""

    attempt: int
    first_step: int
    steps: int
    samples: int


@dataclass(frozen=True)
class Epoch:
    """One epoch of one domain: how many of its samples the surviving history holds."""

    domain: str
    sequence_length: int
    epoch: int
    samples: int
    of: int


@dataclass
class Report:
    """What an audit found."""

    steps: int
    samples: int = 0
    """Read in surviving steps, also in those that are skipped or passed over."""
    images: int = 0
    """How many of these have images."""
    attempts: list[Account] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    rolled_back: list[RolledBack] = field(default_factory=list)
    skipped: list[Consumed] = field(default_factory=list)
    """Steps whose update the guard left out."""
    passed_over: list[tuple[PassedOver, int]] = field(default_factory=list)
    """Steps that a rollback undid for good, with their samples."""
    unsaved: int = 0
    """Steps behind the newest checkpoint, which a resume repeats."""
    quarantined: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Samples that were masked, by the path of their shard and row group."""
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems


def audit(
    run: Storage,
    steps: int,
    phases: Sequence[Phase],
    passed_over: Sequence[tuple[int, int]] = (),
) -> Report:
    """Audit the first `steps` steps of a run that went through `phases` and left out `passed_over`.

    Raises PanthalassaError when a ledger or manifest is missing or is not what was written.
    """
    report = Report(steps)
    history = until(phases, steps)
    kept, noted = _surviving(run, report)
    surviving = {step: consumed for step, (_, consumed) in kept.items()}
    for account in report.attempts:
        number = account.attempt.attempt
        end = max((s + 1 for s, (attempt, _) in kept.items() if attempt == number), default=0)
        for line in differences(account.attempt.phases, phases, end):
            report.problems.append(f"attempt {number} had other data: {line}")
    _find_gaps(surviving, report)
    _audit_updates(surviving, noted, passed_over, report)
    for fingerprint in dict.fromkeys(phase.corpus for phase in history):
        manifest = kept_manifest(run, fingerprint)
        _audit_corpus(manifest, Curriculum(phases, manifest), surviving, report)
    return report


def _surviving(
    run: Storage, report: Report
) -> tuple[dict[int, tuple[int, Consumed]], list[PassedOver]]:
    """The last record of each step before `report.steps`, with its attempt, and the rollbacks."""
    kept: dict[int, tuple[int, Consumed]] = {}
    rollbacks: list[PassedOver] = []
    for account in accounts(run):
        number, first = account.attempt.attempt, account.attempt.first_step
        again = [kept.pop(step) for step in sorted(kept) if step >= first]
        report.rolled_back += _runs(again)
        rollbacks = [back for back in rollbacks if back.end_step <= first] + account.passed_over
        for consumed in account.steps:
            if consumed.step in kept:
                report.problems.append(f"attempt {number} trained step {consumed.step + 1} twice")
            kept[consumed.step] = number, consumed
        report.attempts.append(account)
    attempts = [account.attempt for account in report.attempts]
    before = {a.attempt - 1 if a.before is None else a.before for a in attempts}
    for number in sorted(before - {0} - {a.attempt for a in attempts}):
        report.problems.append(f"the ledger of attempt {number} is missing")
    report.unsaved = sum(step >= report.steps for step in kept)
    surviving = {step: record for step, record in kept.items() if step < report.steps}
    return surviving, [back for back in rollbacks if back.end_step <= report.steps]


def _runs(again: Iterable[tuple[int, Consumed]]) -> Iterator[RolledBack]:
    by_attempt: dict[int, list[Consumed]] = {}
    for attempt, consumed in again:
        by_attempt.setdefault(attempt, []).append(consumed)
    for attempt, steps in sorted(by_attempt.items()):
        samples = sum(consumed.samples for consumed in steps)
        yield RolledBack(attempt, steps[0].step, len(steps), samples)


def _find_gaps(surviving: dict[int, Consumed], report: Report) -> None:
    edges = [-1, *sorted(surviving), report.steps]
    for before, after in pairwise(edges):
        if after > before + 1:
            report.problems.append(f"gap: no record of {named_steps(before + 1, after - 1)}")


def _audit_updates(
    surviving: dict[int, Consumed],
    noted: Sequence[PassedOver],
    saved: Sequence[tuple[int, int]],
    report: Report,
) -> None:
    """Find the steps that the model does not hold. Of rollbacks the newest checkpoint (`saved`)
    decides, and the ledger (`noted`) must agree."""
    ledger: list[PassedOver] = []
    for back in noted:  # one that goes further back takes in those before it
        ledger = [*(p for p in ledger if p.first_step < back.first_step), back]
    found = [(back.first_step, back.end_step) for back in ledger]
    if found != list(saved):
        report.problems.append(
            f"the newest checkpoint passes over {named_ranges(saved)}, the ledger {named_ranges(found)}"
        )
    left = dict(surviving)
    for first, end in saved:
        inside = [left.pop(step) for step in range(first, end) if step in left]
        samples = sum(consumed.samples for consumed in inside)
        report.passed_over.append((PassedOver(first_step=first, end_step=end), samples))
    report.skipped = [consumed for _, consumed in sorted(left.items()) if consumed.skipped]


def kept_manifest(run: Storage, fingerprint: str) -> Manifest:
    """The manifest that a run keeps of a corpus. Raises CorpusError."""
    place = run.below(MANIFESTS)
    try:
        manifest = read_manifest(place, f"{fingerprint}.json")
    except CorpusError:
        manifest = None
    if manifest is None or manifest.fingerprint != fingerprint:
        raise CorpusError(
            f"{place.uri}/{fingerprint}.json is missing, or not the manifest with that SHA-256. Copy "
            f"the {MANIFEST} of the corpus that the run was trained on there; a run that goes on does "
            "so by itself."
        )
    return manifest


class _Tally:
    """Samples and hashes by domain and epoch of one walk: orders of the same corpus, seed and length."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.counts: dict[tuple[int, int], int] = {}
        self.limbs: dict[tuple[int, int], Limbs] = {}
        self._wholes: dict[int, str] = {}

    def whole(self, hashes: SampleHashes, number: int) -> str:
        """The digest of all samples of a domain, as the manifest lists them."""
        if number not in self._wholes:
            self._wholes[number] = digest_of(_whole(hashes, self.order.domains[number]))
        return self._wholes[number]

    def add(self, location: Location, limbs: Limbs) -> None:
        keys, index = np.unique(
            np.stack((location.domain, location.epoch), axis=1), axis=0, return_inverse=True
        )
        sums = np.zeros((len(keys), 4), dtype=np.int64)
        np.add.at(sums, index.reshape(-1), limbs)
        counts = np.bincount(index.reshape(-1), minlength=len(keys))
        for (domain, epoch), count, limb in zip(keys.tolist(), counts.tolist(), sums, strict=True):
            key = domain, epoch
            self.counts[key] = self.counts.get(key, 0) + count
            self.limbs[key] = self.limbs.get(key, np.zeros(4, dtype=np.int64)) + limb


def _audit_corpus(
    manifest: Manifest, curriculum: Curriculum, surviving: dict[int, Consumed], report: Report
) -> None:
    hashes = SampleHashes(manifest.shards)
    walks: dict[tuple[int, int], _Tally] = {}
    for piece in curriculum.pieces(range(report.steps)):
        walk = piece.phase.seed, piece.phase.sequence_length
        tally = walks.setdefault(walk, _Tally(piece.order))
        for steps, location in _chunks(piece):
            limbs = hashes.limbs(location)
            tally.add(location, limbs)
            _compare_steps(manifest, steps, piece, location, limbs, surviving, report)
    for (_, length), tally in walks.items():
        for (number, epoch), count in sorted(tally.counts.items()):
            domain = tally.order.domains[number]
            report.epochs.append(Epoch(domain.name, length, epoch, count, domain.samples))
            found = tally.limbs[number, epoch] + _rest(hashes, tally.order, number, epoch, count)
            if digest_of(found) != tally.whole(hashes, number):
                report.problems.append(
                    f"epoch {epoch + 1} of {domain.name} is not each of its samples once"
                )


def _chunks(piece: Piece) -> Iterator[tuple[Integers, Location]]:
    """Steps, a few at a time, with the samples that stand at their positions, step by step."""
    batch = piece.phase.global_batch
    at_once = max(1, CHUNK // batch)
    for start in range(piece.steps.start, piece.steps.stop, at_once):
        steps = np.arange(start, min(start + at_once, piece.steps.stop))
        every = np.repeat(steps, batch), np.tile(np.arange(batch), len(steps))
        yield steps, piece.order.locate(piece.positions(*every))


def _compare_steps(
    manifest: Manifest,
    steps: Integers,
    piece: Piece,
    location: Location,
    limbs: Limbs,
    surviving: dict[int, Consumed],
    report: Report,
) -> None:
    """Compare what stands at the positions of `steps` with what the ranks recorded."""
    batch, paired = piece.phase.global_batch, piece.order.has_images[location.domain]
    for number, step in enumerate(steps.tolist()):
        consumed = surviving.get(step)
        if consumed is None:
            continue  # a gap, which is a problem already
        own = slice(number * batch, (number + 1) * batch)
        masked = np.isin(np.arange(batch), consumed.quarantined)
        place, good = location[own][np.flatnonzero(masked)], ~masked
        paths = (manifest.shards[shard].path for shard in place.shard)
        report.quarantined.update(zip(paths, place.row_group.tolist(), strict=True))
        report.samples += consumed.samples
        report.images += consumed.images
        samples, images = int(good.sum()), int(paired[own][good].sum())
        found = consumed.samples, consumed.images, consumed.digest
        if found != (samples, images, digest_of(limbs[own][good].sum(axis=0))):
            report.problems.append(
                f"step {step + 1} was trained on {consumed.samples} samples"
                f"{with_images(consumed.images)} that are not the {samples}{with_images(images)} "
                "of its positions"
            )


def _rest(hashes: SampleHashes, order: Order, domain: int, epoch: int, taken: int) -> Limbs:
    """The sum over the samples of an epoch behind the first `taken`."""
    total, size = np.zeros(4, dtype=np.int64), order.domains[domain].samples
    for start in range(taken, size, CHUNK):
        offsets = np.arange(start, min(start + CHUNK, size))
        total += hashes.limbs(order.samples_of_epoch(domain, epoch, offsets)).sum(axis=0)
    return total


def _whole(hashes: SampleHashes, domain: Domain) -> Limbs:
    """The sum over all samples of a domain."""
    total = np.zeros(4, dtype=np.int64)
    ends = np.cumsum(domain.rows * domain.parts)
    for start in range(0, domain.samples, CHUNK):
        sample = np.arange(start, min(start + CHUNK, domain.samples))
        group = np.searchsorted(ends, sample, side="right")
        first = ends[group] - domain.rows[group] * domain.parts
        row, part = np.divmod(sample - first, domain.parts)
        zero = np.zeros_like(row)
        place = Location(zero, zero, domain.shard[group], domain.row_group[group], row, part)
        total += hashes.limbs(place).sum(axis=0)
    return total


def audit_run(run: Storage) -> Report:
    """Audit a run up to its newest checkpoint. Raises CheckpointError when there is none."""
    try:
        names = candidates(run)[0]
        if not names:
            raise CheckpointError(f"no run with a checkpoint at {run.uri}")
        commit = read_commit(run, names[-1])
        return audit(run, commit.step, commit.phases, commit.passed_over)
    except OSError as error:
        raise CheckpointError(f"the run at {run.uri} can not be read: {error}") from error


def explain(report: Report) -> Iterator[str]:
    """What an audit found, in lines for people; the last one begins with PASS or FAIL."""
    worlds = ", ".join(
        f"{account.attempt.dp_size}x{account.attempt.tp_size}" for account in report.attempts
    )
    yield (
        f"{counted(report.steps, 'step')}, {counted(report.samples, 'sample')}"
        f"{with_images(report.images)}, {counted(len(report.attempts), 'attempt')} "
        f"(data x tensor parallel: {worlds})"
    )
    yield from _epoch_lines(report.epochs)
    for undone in report.rolled_back:
        yield (
            f"rolled back: {named_steps(undone.first_step, undone.first_step + undone.steps - 1)} of "
            f"attempt {undone.attempt}, {counted(undone.samples, 'sample')} trained and undone"
        )
    for step in report.skipped:
        yield f"skipped by the guard: step {step.step + 1}, {counted(step.samples, 'sample')}"
    for back, samples in report.passed_over:
        yield (
            f"passed over after a rollback: {named_steps(back.first_step, back.end_step - 1)}, "
            f"{counted(samples, 'sample')}"
        )
    if report.unsaved:
        yield f"not in a checkpoint yet: {counted(report.unsaved, 'step')}, which a resume repeats"
    for (shard, group), samples in sorted(report.quarantined.items()):
        left_out = counted(samples, "sample")
        yield f"quarantined: row group {group} of {shard}, {left_out} not trained on"
    yield from report.problems[:MOST_PROBLEMS]
    if len(report.problems) > MOST_PROBLEMS:
        yield f"and {counted(len(report.problems) - MOST_PROBLEMS, 'problem')} more"
    if report.passed:
        yield "PASS: each sample of each epoch exactly once" + _exceptions(report)
    else:
        yield f"FAIL: {counted(len(report.problems), 'problem')}"


def _exceptions(report: Report) -> str:
    kinds = ("quarantined", "skipped", "passed_over")
    found = [f"the {kind.replace('_', ' ')}" for kind in kinds if getattr(report, kind)]
    return f", but for {' and '.join(found)}" if found else ""


def _epoch_lines(epochs: Sequence[Epoch]) -> Iterator[str]:
    """A line for each domain: epochs that are complete, and those that are not."""
    for (domain, length), group in groupby(epochs, lambda e: (e.domain, e.sequence_length)):
        every = list(group)
        found = [
            f"{epoch.samples:,} of {epoch.of:,} samples of epoch {epoch.epoch + 1}"
            for epoch in every
            if epoch.samples != epoch.of
        ]
        if whole := len(every) - len(found):
            found.insert(0, counted(whole, "whole epoch"))
        yield f"  {domain}, {length} tokens: {', '.join(found)}"
