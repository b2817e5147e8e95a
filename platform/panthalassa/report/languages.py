"""What a run was trained on, by language: from its ledger and its order, without reading a sample.

The ledger tells which steps stand and what was left out of them; the order (a pure function of manifest,
mixture and seed) which samples stand at their positions. So the count is exact, takes no time, and is
what `panthalassa audit` proves.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Curriculum, Phase, Piece, until
from panthalassa.stream.ledger import Consumed, PassedOver, accounts
from panthalassa.stream.order import Integers
from panthalassa.train.audit import kept_manifest

COUNTED = (
    "Counted are the samples at the positions of all steps that stand, by the run's ledger and order. "
    "A step that was repeated after a restart counts once; steps that the guard skipped or a rollback "
    "passed over, and samples that could not be read, do not count. A sample is packed from texts of "
    "one domain; a domain is the language that preparation filed a text under."
)


@dataclass(frozen=True)
class Language:
    """A domain of the corpus, and how much of it was trained."""

    name: str
    samples: int
    positions: int
    """Samples times their length in tokens, padding included."""
    epochs: float
    """How often the domain was gone through."""


def languages(run: Storage, end: int | None = None) -> list[Language]:
    """What a run was trained on so far, or in its steps before `end`, the most first; empty when it has
    trained nothing.

    Raises PanthalassaError when the ledger or a manifest is missing or is not what was written.
    """
    try:
        attempts = list(accounts(run))
    except OSError as error:
        raise PanthalassaError(f"the ledger of {run.uri} can not be read: {error}") from error
    if not attempts:
        raise PanthalassaError(f"there is no ledger of samples at {run.uri}")
    stands: dict[int, Consumed] = {}
    undone: list[PassedOver] = []
    for found in attempts:
        first = found.attempt.first_step
        for step in [step for step in stands if step >= first]:
            del stands[step]
        undone = [back for back in undone if back.end_step <= first] + found.passed_over
        stands |= {consumed.step: consumed for consumed in found.steps}
    for back in undone:
        for step in range(back.first_step, back.end_step):
            stands.pop(step, None)
    stands = {step: consumed for step, consumed in stands.items() if end is None or step < end}
    return _count(run, attempts[-1].attempt.phases, stands)


def _count(run: Storage, phases: Sequence[Phase], stands: dict[int, Consumed]) -> list[Language]:
    samples: defaultdict[str, int] = defaultdict(int)
    positions: defaultdict[str, int] = defaultdict(int)
    epochs: defaultdict[str, float] = defaultdict(float)
    end = max(stands, default=-1) + 1
    for fingerprint in dict.fromkeys(phase.corpus for phase in until(phases, end)):
        manifest = kept_manifest(run, fingerprint)
        for piece in Curriculum(phases, manifest).pieces(range(end)):
            length = piece.phase.sequence_length
            counts = _trained(piece, stands).tolist()
            for domain, count in zip(piece.order.domains, counts, strict=True):
                samples[domain.name] += count
                positions[domain.name] += count * length
                epochs[domain.name] += count / domain.samples
    most_first = sorted(samples, key=lambda name: -samples[name])
    return [
        Language(name, samples[name], positions[name], epochs[name])
        for name in most_first
        if samples[name]
    ]


def _trained(piece: Piece, stands: dict[int, Consumed]) -> Integers:
    """Samples of each domain [domains] that the steps of a piece were trained on."""
    order, batch = piece.order, piece.phase.global_batch

    def between(first: int, end: int) -> Integers:
        start, stop = ((step - piece.phase.first_step) * batch for step in (first, end))
        return order.counts(stop) - order.counts(start)

    total = between(piece.steps.start, piece.steps.stop)
    for step in piece.steps:
        consumed = stands.get(step)
        if consumed is None or consumed.skipped:
            total -= between(step, step + 1)
        elif consumed.quarantined:
            masked = np.array(consumed.quarantined)
            place = order.locate(piece.positions(np.full_like(masked, step), masked))
            total -= np.bincount(place.domain, minlength=len(total))
    return total
