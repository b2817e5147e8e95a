"""Claims about a training run: which of them contradict each other, and the fewest changes that mend it.

Claims come in as texts, `gpus=512`; out come every contradiction with its arithmetic in names and
numbers, and every smallest set of claims without which the others agree, with what these then say of the
changed ones. The one idea: a smallest set that contradicts has one claim, or one plausible range, that
all the others lead away from; the equations on that way are the arithmetic.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from panthalassa.errors import PanthalassaError
from panthalassa.model.flops import PEAK_BF16
from panthalassa.planner.agreement import INDEX, Between, Program, Search, Solution
from panthalassa.planner.goodput import Assumption
from panthalassa.planner.quantities import (
    QUANTITIES,
    Claim,
    Relation,
    number,
    read_claim,
    told,
)

TOLERANCE = 0.03
"""Each claim may be wrong by this share, as numbers with two digits are."""
POWERS = {3: "thousand", 6: "million", 9: "billion"}
MOST_CLAIMS = 18
DOUBTED = {"bytes_per_token": (), "mfu": ("hfu",), "power_share": ()}
"""Ranges to be named when claims leave one, rather than one of the claims; and what else has to give."""
SLIPS = {
    **{10.0**power: f"a factor of a {word} is missing" for power, word in POWERS.items()},
    **{10.0**-power: f"it is a {word} times too much" for power, word in POWERS.items()},
}


@dataclass(frozen=True)
class Contradiction:
    """Claims that can not all be true, of which any one less could be."""

    claims: tuple[Claim, ...]
    steps: tuple[str, ...]
    """The arithmetic, equation by equation."""
    verdict: str
    """What they lead to, and what is claimed or plausible instead."""

    def __str__(self) -> str:
        return "; ".join((*self.steps, self.verdict))


@dataclass(frozen=True)
class Change:
    """What the other claims say of one that is changed."""

    claim: Claim
    between: Between | None
    """None: of a GPU."""
    gpus: tuple[str, ...] = ()
    """GPUs that would do, if the claim is of one."""
    slip: float | None = None
    """The power of a thousand by which the claim would be right."""

    def __str__(self) -> str:
        name = self.claim.name
        if self.between is None:
            return f"{name}: {' or '.join(self.gpus) or 'another'} instead of {self.claim.said}"
        line = f"{name}: {self.between.told(name)} instead of {self.claim.said}"
        if self.slip:
            meant = told(name, self.claim.values[name] * self.slip)
            line += f"; with {meant} all agree: {SLIPS[self.slip]}"
        return line


@dataclass(frozen=True)
class Remedy:
    """A smallest set of claims to change, so that the others agree."""

    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes))


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    claims: tuple[Claim, ...]
    contradictions: tuple[Contradiction, ...]
    """Shortest first; all of them, unless `more`."""
    more: bool
    remedies: tuple[Remedy, ...]
    """All that change as few claims; first the one that explains a slip of a thousand, then the one that
    changes what follows from others rather than what is given. None if the claims agree."""
    follows: Mapping[str, Between]
    """For what is not claimed: from the claims, or from what the first remedy makes of them."""
    assumptions: tuple[Assumption, ...]

    @property
    def consistent(self) -> bool:
        return not self.contradictions


def check(claims: Iterable[str], tolerance: float = TOLERANCE) -> Report:
    """Compare claims with each other, and with what is plausible.

    Raises PanthalassaError for a claim that can not be read, is impossible, or is made twice, and for
    more than MOST_CLAIMS.
    """
    found = tuple(map(read_claim, claims))
    _no_doubles(found)
    if not 0 <= tolerance < 1:
        raise PanthalassaError(f"a tolerance of {tolerance:g}: expected a share from 0 to below 1")
    search = Search(found, math.log1p(tolerance))
    everything = (1 << len(found)) - 1
    if search.agree(everything):
        return Report(found, (), False, (), _follows(found), _assumptions(found, tolerance))
    search.run()
    settling = [claim for claim in found if _settles(claim)]
    conflicts = [search.subset(mask) for mask in search.conflicts]
    remedies = [_remedy(found, search.subset(mask), tolerance) for mask in search.agreeing]

    def order(remedy: Remedy) -> tuple[int, int]:
        slips = sum(change.slip is not None for change in remedy.changes)
        return -slips, -sum(_rank(change.claim) for change in remedy.changes)

    remedies.sort(key=order)
    conflicts.sort(key=lambda group: (len(group), -max(map(_rank, group))))
    return Report(
        found,
        tuple(_contradiction(group, settling, search.tolerance) for group in conflicts),
        search.more,
        tuple(remedies),
        _follows(_mended(found, remedies[0])),
        _assumptions(found, tolerance),
    )


def _no_doubles(claims: Sequence[Claim]) -> None:
    if not claims:
        raise PanthalassaError("no claims: expected one or more, such as gpus=512")
    if len(claims) > MOST_CLAIMS:
        raise PanthalassaError(
            f"{len(claims)} claims: at most {MOST_CLAIMS} are checked at a time; leave some out"
        )
    seen: dict[str, Claim] = {}
    for claim in claims:
        if claim.name in seen:
            raise PanthalassaError(
                f"{claim.name} is claimed twice, by {seen[claim.name].text!r} and {claim.text!r}: "
                "leave one out"
            )
        seen[claim.name] = claim


def _contradiction(claims: tuple[Claim, ...], also: Sequence[Claim], limit: float) -> Contradiction:
    """What the claims lead to for the one to be doubted, or for a range that they leave.

    also: claims that take the place of a plausible range, where they do not contradict these.
    """
    names = {claim.name for claim in claims}
    for name in (name for name in DOUBTED if name not in names):
        free: tuple[str, ...] = (name, *DOUBTED[name])
        if Program(claims, free).error <= limit:
            program = _definite(claims, also, free, limit)
            quantity = QUANTITIES[name]
            there = Between(quantity.low, quantity.high)
            plausible = f"plausible are {there.told(name)} ({quantity.why})"
            return _explain(claims, program, name, there, plausible)
    last = max(claims, key=_rank)
    name, value = next(iter(last.values.items()))
    instead, free = f"{last.said} is claimed", (name,)
    if len(claims) == 1:
        instead, free = f"{instead} ({QUANTITIES[name].why})", ()
    others = [claim for claim in claims if claim is not last]
    program = _definite(others, [claim for claim in also if claim is not last], free, limit)
    return _explain(claims, program, name, Between(value, value), instead)


def _definite(
    claims: Sequence[Claim], also: Sequence[Claim], free: Collection[str], limit: float
) -> Program:
    more = Program([*claims, *(claim for claim in also if claim not in claims)], free)
    return more if more.error <= limit else Program(claims, free)


def _explain(
    claims: tuple[Claim, ...], program: Program, name: str, there: Between, instead: str
) -> Contradiction:
    """That the program has a quantity above or below where it is claimed or plausible."""
    low, high = program.bound(name, 1), program.bound(name, -1)
    above = low.value > math.log(there.high)
    nearest = low if above else high
    reached = Between(math.exp(low.value), math.exp(max(low.value, high.value)))
    if reached.high < 10 * reached.low:
        here = reached.told(name)
    else:
        here = f"at {'least' if above else 'most'} {told(name, math.exp(nearest.value))}"
    times = reached.low / there.high if above else there.low / reached.high
    if times >= 1.5:
        by = f"{times:,.3g} times {'less' if above else 'as much'}"
    else:
        by = f"{1 - 1 / times:.1%} less" if above else f"{times - 1:.1%} more"
    steps = tuple(_step(relation, program, nearest, name) for relation in nearest.used)
    return Contradiction(claims, steps, f"{name} is {here}, but {instead}, {by}")


def _step(relation: Relation, program: Program, solution: Solution, sought: str) -> str:
    """The equation in names and in numbers; what nothing settles keeps its name."""

    def value(name: str) -> str | None:
        settled = program.settled(name, solution, sought)
        return number(math.exp(solution.logs[INDEX[name]])) if settled else None

    step, numbers = str(relation), relation.written(lambda name: value(name) or name)
    if not step.endswith(f" = {numbers}"):
        step += f" = {numbers}"
    if program.settled(relation.target, solution, sought):
        step += f" = {told(relation.target, math.exp(solution.logs[INDEX[relation.target]]))}"
    return step


def _remedy(claims: Sequence[Claim], kept: tuple[Claim, ...], tolerance: float) -> Remedy:
    return Remedy(tuple(_change(claim, kept, tolerance) for claim in claims if claim not in kept))


def _change(claim: Claim, kept: tuple[Claim, ...], tolerance: float) -> Change:
    def agrees(other: Claim) -> bool:
        return Program((*kept, other)).error <= math.log1p(tolerance)

    if claim.name == "gpu":
        names = (name for name in PEAK_BF16 if agrees(read_claim(f"gpu={name}")))
        return Change(claim, None, tuple(names))
    between = Program(kept).between(claim.name)
    slip = None
    if between.high < 1000 * between.low:
        slip = next((factor for factor in SLIPS if agrees(_scaled(claim, factor))), None)
    return Change(claim, between, slip=slip)


def _scaled(claim: Claim, factor: float) -> Claim:
    return replace(claim, values={name: value * factor for name, value in claim.values.items()})


def _mended(claims: Sequence[Claim], remedy: Remedy) -> tuple[Claim, ...]:
    """The claims as the remedy would have them; without those for which it leaves a choice."""
    changed = {change.claim.name for change in remedy.changes}
    kept = [claim for claim in claims if claim.name not in changed]
    for change in remedy.changes:
        claim, between = change.claim, change.between
        if change.slip:
            kept.append(_scaled(claim, change.slip))
        elif between and between.exact:
            kept.append(replace(claim, values={claim.name: between.low}))
    return tuple(kept)


def _follows(claims: Sequence[Claim]) -> dict[str, Between]:
    """Of what is not claimed: where the claims leave less than a factor of ten, and less than before."""
    program = Program(claims)
    said = {name for claim in claims for name in claim.values}
    found = {}
    for name, quantity in QUANTITIES.items():
        if name in said or quantity.units is None:
            continue
        now, before = program.between(name), _without_claims()[name]
        narrower = math.log(now.high / now.low) < 0.99 * math.log(before.high / before.low)
        if narrower and now.high < 10 * now.low:
            found[name] = now
    return found


@cache
def _without_claims() -> dict[str, Between]:
    program = Program(())
    return {name: program.between(name) for name in QUANTITIES}


def _settles(claim: Claim) -> bool:
    """Whether it takes the place of a range that is plausible."""
    return any(QUANTITIES[name].why and not QUANTITIES[name].holds for name in claim.values)


def _rank(claim: Claim) -> int:
    """Higher, the sooner it is doubted."""
    return max(INDEX[name] for name in claim.values) if claim.name != "gpu" else 0


def _assumptions(claims: Sequence[Claim], tolerance: float) -> tuple[Assumption, ...]:
    said = {name for claim in claims for name in claim.values}
    return (
        Assumption(
            "tolerance", f"{tolerance:.1%} of each claim", "numbers of two digits are rounded"
        ),
        Assumption("model", "dense, trained in one phase at one size", "the equations"),
        *(
            Assumption(name, Between(one.low, one.high).told(name), one.why)
            for name, one in QUANTITIES.items()
            if one.why and (one.holds or name not in said)
        ),
    )
