"""Whether claims agree, and which of them do not: claims come in, sets of them and ranges go out.

The one idea: in logarithms the equations are linear, so "do these claims agree?" is a linear program:
the least error that each of them must be allowed. With it the sets of claims are mapped, from the
largest on: the smallest that contradict, and the largest that agree, of which the rest is the smallest
change (as in Liffiton et al. 2016, "Fast, flexible MUS enumeration", with the map kept as bits).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linprog

from panthalassa.planner.quantities import (
    QUANTITIES,
    RELATIONS,
    Claim,
    Relation,
    told_between,
)

MOST_CONTRADICTIONS = 20

NAMES = list(QUANTITIES)
INDEX = {name: place for place, name in enumerate(NAMES)}
EQUATIONS = np.zeros((len(RELATIONS), len(NAMES) + 1))
for _row, _relation in zip(EQUATIONS, RELATIONS, strict=True):
    _row[INDEX[_relation.target]] = 1
    for _name, _power in _relation.powers.items():
        _row[INDEX[_name]] = -_power
CONSTANTS = np.array([math.log(relation.constant) for relation in RELATIONS])


@dataclass(frozen=True)
class Between:
    """What is left for a quantity."""

    low: float
    high: float

    @property
    def exact(self) -> bool:
        return self.high <= self.low * (1 + 1e-6)

    def told(self, name: str) -> str:
        """For people."""
        return told_between(name, self.low, self.high)


@dataclass(frozen=True)
class Solution:
    value: float
    """The logarithm that was sought, or the least error."""
    logs: np.ndarray[tuple[int], np.dtype[np.float64]]
    used: tuple[Relation, ...]
    """The equations that decide the value."""


class Program:
    """The linear program of some claims: logarithms of all quantities, and the error of the claims."""

    def __init__(self, claims: Sequence[Claim], free: Collection[str] = ()) -> None:
        """free: quantities whose ranges do not count."""
        said = {name: value for claim in claims for name, value in claim.values.items()}
        pairs = [(name, value) for claim in claims for name, value in claim.values.items()]
        self.limits = [
            (-35.0, 92.0)
            if name in free or (name in said and not quantity.holds)
            else (math.log(quantity.low), math.log(quantity.high))
            for name, quantity in QUANTITIES.items()
        ]
        rows, self.right = np.zeros((2 * len(pairs), len(NAMES) + 1)), np.zeros(2 * len(pairs))
        rows[:, -1] = -1
        for place, (name, value) in enumerate(pairs):
            for half, sign in ((2 * place, 1), (2 * place + 1, -1)):
                rows[half, INDEX[name]], self.right[half] = sign, sign * math.log(value)
        self.rows = rows

    def solve(self, sought: int, sign: int, error: tuple[float, float | None]) -> Solution | None:
        goal = np.zeros(len(NAMES) + 1)
        goal[sought] = sign
        result = linprog(
            goal,
            A_ub=self.rows,
            b_ub=self.right,
            A_eq=EQUATIONS,
            b_eq=CONSTANTS,
            bounds=[*self.limits, error],
        )
        if not result.success:
            return None
        used = np.abs(result.eqlin.marginals) > 1e-9
        relations = tuple(one for one, use in zip(RELATIONS, used, strict=True) if use)
        return Solution(sign * float(result.fun), result.x, relations)

    @cached_property
    def error(self) -> float:
        """The least that each claim must be allowed, in logarithms, so that all can be true."""
        found = self.solve(-1, 1, (0.0, None))
        return found.value if found else math.inf

    def bound(self, name: str, sign: int) -> Solution:
        """The lowest (sign 1) or highest (-1) that a quantity can be."""
        allowed = self.error + 1e-12
        found = self.solve(INDEX[name], sign, (0.0, allowed))
        if found is None:  # by rounding
            found = self.solve(INDEX[name], sign, (0.0, allowed + 1e-7))
        assert found is not None
        return found

    def settled(self, name: str, solution: Solution, sought: str) -> bool:
        """Whether the solution, of `sought`, leaves only one value for another quantity."""
        if name == sought:
            return True
        place = INDEX[sought]
        kept, self.limits[place] = self.limits[place], (solution.logs[place],) * 2
        low, high = (self.bound(name, sign).value for sign in (1, -1))
        self.limits[place] = kept
        return high - low < 1e-6

    def between(self, name: str) -> Between:
        low, high = (math.exp(self.bound(name, sign).value) for sign in (1, -1))
        return Between(low, max(low, high))


class Search:
    """Sets of claims as bits: the smallest that contradict, the largest that agree."""

    def __init__(self, claims: Sequence[Claim], tolerance: float) -> None:
        self.claims, self.tolerance = claims, tolerance
        self.conflicts: list[int] = []
        self.agreeing: list[int] = []
        """The largest, of equal size."""
        self.more = False
        self._known: dict[int, bool] = {}

    def subset(self, mask: int) -> tuple[Claim, ...]:
        return tuple(claim for place, claim in enumerate(self.claims) if mask >> place & 1)

    def agree(self, mask: int) -> bool:
        if any(mask & conflict == conflict for conflict in self.conflicts):
            return False
        if mask not in self._known:
            error = Program(self.subset(mask)).error
            self._known[mask] = error <= self.tolerance + 1e-9
        return self._known[mask]

    def run(self) -> None:
        """Take the largest set that is not decided yet, until all are.

        It either agrees, and with it all its subsets, or holds a conflict, and so do all that hold that.
        """
        masks = np.arange(1 << len(self.claims))
        sizes = np.bitwise_count(masks).astype(np.int64)
        while sizes.max() >= 0:
            seed = int(sizes.argmax())
            if self.agree(seed):
                if not self.agreeing or sizes[seed] == self.agreeing[0].bit_count():
                    self.agreeing.append(seed)
                sizes[masks & seed == masks] = -1
            elif len(self.conflicts) >= MOST_CONTRADICTIONS and self._settled(int(sizes[seed])):
                self.more = True
                return
            else:
                conflict = self._shrink(seed)
                self.conflicts.append(conflict)
                sizes[masks & conflict == conflict] = -1

    def _settled(self, size: int) -> bool:
        """Whether all of the largest sets that agree are known."""
        return bool(self.agreeing) and size < self.agreeing[0].bit_count()

    def _shrink(self, mask: int) -> int:
        for place in range(len(self.claims)):
            if mask >> place & 1 and not self.agree(mask & ~(1 << place)):
                mask &= ~(1 << place)
        return mask
