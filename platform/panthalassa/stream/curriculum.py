"""The phases of a run: which order its samples have, from which step on.

A run's whole history of data is a list of phases. The configuration plans them, checkpoints and the
ledger record them, and a run goes on only when the phase that it is in is the one that is planned;
what comes later may be changed at any time. A phase of the same corpus, seed and sequence
length goes on in each domain where the last such phase stopped, so that no sample comes twice in an
epoch; another sequence length cuts rows into other samples, and so has epochs of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.stream.order import Integers, Mixture, Order


class Phase(BaseModel):
    """What the order of the samples depends on, from `first_step` on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_step: int = Field(ge=0)
    corpus: str
    """The corpus's fingerprint."""
    seed: int
    temperature: float
    weights: dict[str, float] | None
    image_share: float | None = Field(default=None, exclude_if=lambda value: value is None)
    sequence_length: int = Field(ge=2)
    global_batch: int = Field(ge=1)

    @property
    def mixture(self) -> Mixture:
        return Mixture(self.temperature, self.weights, self.image_share)


def planned(config: Config, fingerprint: str) -> list[Phase]:
    """The phases that a configuration asks for."""
    stream, train = config.stream, config.train
    first = Phase(
        first_step=0,
        corpus=fingerprint,
        seed=config.run.seed,
        temperature=stream.temperature,
        weights=stream.weights,
        image_share=stream.image_share,
        sequence_length=train.sequence_length,
        global_batch=train.global_batch,
    )
    phases = [first]
    for later in stream.phases:
        changes: dict[str, object] = {"first_step": later.from_step}
        if later.temperature is not None:
            changes |= {"temperature": later.temperature, "weights": None}
        if later.weights is not None:
            changes["weights"] = later.weights
        if later.image_share is not None:
            changes["image_share"] = later.image_share
        if later.sequence_length is not None:
            changes["sequence_length"] = later.sequence_length
        phases.append(first.model_copy(update=changes))
    return phases


def until(phases: Sequence[Phase], step: int) -> list[Phase]:
    """The phases that steps before `step` belong to."""
    return [phase for phase in phases if phase.first_step < step]


def resume(history: Sequence[Phase], plan: Sequence[Phase], step: int) -> list[Phase]:
    """The phases of a run that goes on at `step`: those it went through, then those still planned."""
    return [*until(history, step), *(phase for phase in plan if phase.first_step >= step)]


def change(history: Sequence[Phase], plan: Sequence[Phase], step: int) -> list[Phase]:
    """The same when what is planned begins at `step` as a new phase."""
    now = until(plan, step + 1)[-1].model_copy(update={"first_step": step})
    return [*until(history, step), now, *(phase for phase in plan if phase.first_step > step)]


def differences(history: Sequence[Phase], plan: Sequence[Phase], step: int) -> list[str]:
    """What the phase of the last step before `step` and the one that is planned for it differ in."""
    was, planned = until(history, step)[-1:], until(plan, step)[-1:]
    return [
        f"{key} is {value} there, {getattr(now, key)} here"
        for then, now in zip(was, planned, strict=True)
        for key, value in then
        if key != "first_step" and getattr(now, key) != value
    ]


@dataclass(frozen=True)
class Piece:
    """Consecutive steps of one phase."""

    phase: Phase
    order: Order
    steps: range

    def positions(self, steps: Integers, samples: Integers) -> Integers:
        """Where in the phase's order sample number `samples` of the global batch of `steps` stands."""
        return (steps - self.phase.first_step) * self.phase.global_batch + samples


class Curriculum:
    """The phases of a run, with the orders of those that read the corpus of `manifest`."""

    def __init__(self, phases: Sequence[Phase], manifest: Manifest) -> None:
        self.phases = list(phases)
        self._orders: list[Order | None] = []
        taken: dict[tuple[int, int], Integers] = {}
        fingerprint = manifest.fingerprint
        for phase, end in zip(phases, [*(p.first_step for p in phases[1:]), None], strict=True):
            if phase.corpus != fingerprint:
                self._orders.append(None)
                continue
            walk = phase.seed, phase.sequence_length
            order = Order(
                manifest, phase.sequence_length, phase.mixture, phase.seed, taken.get(walk)
            )
            self._orders.append(order)
            if end is not None:
                samples = (end - phase.first_step) * phase.global_batch
                taken[walk] = order.start + order.counts(samples)

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return [phase for phase in self.phases if phase.first_step <= step][-1]

    def pieces(self, steps: range) -> Iterator[Piece]:
        """`steps` cut at the beginnings of phases; without steps of phases of another corpus."""
        ends = [*(phase.first_step for phase in self.phases[1:]), steps.stop]
        for phase, order, end in zip(self.phases, self._orders, ends, strict=True):
            part = range(max(phase.first_step, steps.start), min(end, steps.stop))
            if part and order is not None:
                yield Piece(phase, order, part)

    def samples(self, step: int) -> int:
        """Samples that the steps before `step` consume."""
        starts = [*(phase.first_step for phase in until(self.phases, step)), step]
        return sum(
            (end - start) * phase.global_batch
            for phase, (start, end) in zip(self.phases, pairwise(starts), strict=False)
        )
