"""A loss law fitted to measured losses: L(N, D) = E + A / N^alpha + B / D^beta, and how sure it is.

In come parameters N, tokens D and losses of finished runs; out come the five constants and a sample of
others that the losses allow as well, from which any quantity gets its interval. The form and the fit
are those of Hoffmann et al. 2022 (approach 3, section 3.3 and appendix D.2): the Huber loss of the
logarithm's residuals, with the three terms added by log-sum-exp, from several starts. Two things
differ. The Huber threshold is not fixed at 0.001, which is far below the noise of small runs, but
follows the noise itself (1.345 standard deviations, Huber 1981). And the intervals are those of
Student's t with the degrees of freedom that are left, so that few runs give wide ones. They tell what
the noise of the runs leaves open, not whether the law holds beyond them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.stats import f as f_distribution
from scipy.stats import t as student

from panthalassa.errors import PanthalassaError

CONFIDENCE = 0.95
HUBER = 1.345
"""Standard deviations beyond which a residual counts linearly: 95 % efficient where noise is normal."""
FEWEST = 7
"""Runs that a fit of five constants and a noise takes."""
LEVELS = 3
"""Sizes, and budgets of tokens, below which an exponent can not be told from the irreducible loss."""
EXPONENTS = (0.1, 0.25, 0.5, 1.0)
"""Exponents from which the fit starts, each with each."""
STARTS = 3
"""The best of them, which are followed to their end."""
SAMPLE = 10_000
SEED = 0

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval; 0 or infinity where the data set no end."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LossLaw:
    """E + A / N^alpha + B / D^beta in nats a token; the fields are arrays of one shape."""

    log_a: Floats
    log_b: Floats
    e: Floats
    alpha: Floats
    beta: Floats

    @classmethod
    def of(cls, theta: Floats) -> "LossLaw":
        """From log A, log B, E, alpha and beta along the last axis."""
        return cls(*np.moveaxis(np.asarray(theta, float), -1, 0))

    def loss(self, parameters: Floats | float, tokens: Floats | float) -> Floats:
        """Of sizes and tokens that broadcast against the fields."""
        of_size = self.log_a - self.alpha * np.log(parameters)
        of_data = self.log_b - self.beta * np.log(tokens)
        with np.errstate(over="ignore"):
            return np.asarray(self.e + np.exp(of_size) + np.exp(of_data))


@dataclass(frozen=True)
class Fit:
    """A law, and a sample of the laws that its data allow."""

    law: LossLaw
    sample: LossLaw
    """Arrays [SAMPLE]."""
    noise: float
    """Standard deviation of the losses around the law, as a share of them."""
    runs: int

    def estimate(self, of: Callable[[LossLaw], Floats], together: int = 1) -> Estimate:
        """Any quantity that follows from a law, such as `lambda law: law.alpha`.

        together: so many quantities are to be inside their intervals at once, 95 times in 100: each
        interval is the extent of their common region (Scheffe 1953).
        """
        free = self.runs - 5
        reach = (together * f_distribution.ppf(CONFIDENCE, together, free)) ** 0.5
        tail = float(student.sf(reach, free))
        with np.errstate(all="ignore"):
            low, high = np.quantile(of(self.sample), [tail, 1 - tail], method="nearest")
            return Estimate(float(of(self.law)), float(low), float(high))

    @property
    def exponents(self) -> dict[str, Estimate]:
        """alpha and beta, inside their intervals together: their ratio moves the optimum."""
        return {name: self.estimate(attrgetter(name), 2) for name in ("alpha", "beta")}

    @property
    def undetermined(self) -> list[str]:
        """Why not to trust the exponents, if so: in words, one by one."""
        told = []
        for what, (name, found) in zip(
            ("model sizes", "budgets of tokens"), self.exponents.items(), strict=True
        ):
            if found.low <= 0 or found.high - found.low > found.value:
                how = "do not determine" if found.low <= 0 else "hardly determine"
                told.append(f"these losses {how} {name}: it takes more {what}, further apart")
        return told


def fit(parameters: Floats, tokens: Floats, losses: Floats) -> Fit:
    """The law of so many finished runs: parameters, tokens trained on, losses in nats a token.

    Raises PanthalassaError for runs that can not determine five constants.
    """
    _check(parameters, tokens, losses)
    # Around their means size and data are not mistaken for the constants A and B.
    x, y, target = np.log(parameters), np.log(tokens), np.log(losses)
    centre = np.array([x.mean(), y.mean()])
    solve = _Solver(x - centre[0], y - centre[1], target)
    theta, noise = solve.best()
    covariance = solve.covariance(theta, noise)
    # Back: log A + alpha mean(log N), so that the sample is of the law's own constants.
    back = np.eye(5)
    back[[0, 1], [3, 4]] = centre
    free = len(losses) - 5
    chance = np.random.default_rng(SEED)
    spread = chance.normal(size=(SAMPLE, 5)) @ root(covariance).T
    spread *= np.sqrt(free / chance.chisquare(free, size=(SAMPLE, 1)))
    theta[2] = np.exp(theta[2])
    law, sample = theta @ back.T, (theta + spread) @ back.T
    return Fit(LossLaw.of(law), LossLaw.of(sample), noise, len(losses))


def root(covariance: Floats) -> Floats:
    """A square root of a covariance, also of one that is singular to rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _check(n: Floats, d: Floats, loss: Floats) -> None:
    levels = len(np.unique(n)), len(np.unique(d))
    if len(loss) < FEWEST or min(levels) < LEVELS:
        raise PanthalassaError(
            f"a loss law takes {FEWEST} finished trials over {LEVELS} model sizes and {LEVELS} budgets "
            f"of tokens. Trials that count here: {len(loss)}, distinct sizes: {levels[0]}, distinct "
            f"budgets: {levels[1]}"
        )
    if not (np.isfinite([n, d, loss]).all() and min(n.min(), d.min(), loss.min()) > 0):
        raise PanthalassaError("sizes, tokens and losses of a loss law are finite and above 0")


class _Solver:
    """Fits (a, b, log E, alpha, beta) to log losses; x and y are log N and log D around their means."""

    def __init__(self, x: Floats, y: Floats, target: Floats) -> None:
        self.x, self.y, self.target = x, y, target

    def terms(self, theta: Floats) -> tuple[Floats, Floats]:
        """The logarithm of the law [n], and the share of each of its terms [3, n]."""
        a, b, e, alpha, beta = theta
        logs = np.stack([a - alpha * self.x, b - beta * self.y, np.full_like(self.x, e)])
        top = logs.max(axis=0)
        each = np.exp(logs - top)
        whole = each.sum(axis=0)
        return top + np.log(whole), each / whole

    def residuals(self, theta: Floats) -> Floats:
        return self.terms(theta)[0] - self.target

    def jacobian(self, theta: Floats) -> Floats:
        size, data, rest = self.terms(theta)[1]
        return np.stack([size, data, rest, -size * self.x, -data * self.y], axis=1)

    def best(self) -> tuple[Floats, float]:
        """The constants of the least Huber loss, and the noise around them."""
        ends = [self.follow(start) for start in self.starts()]
        theta = min(ends, key=self.noise)
        for _ in range(2):  # the threshold and the fit find each other
            theta = self.follow(theta)
        return theta, self.noise(theta)

    def starts(self) -> list[Floats]:
        """With both exponents given, the law is linear in the rest: the best of a grid of exponents."""
        found = []
        for alpha in EXPONENTS:
            for beta in EXPONENTS:
                columns = [np.exp(-alpha * self.x), np.exp(-beta * self.y), np.ones_like(self.x)]
                shares = np.stack(columns, axis=1) / np.exp(self.target)[:, None]
                constants, off = nnls(shares, np.ones_like(self.x))
                logs = np.log(np.maximum(constants, 1e-3))
                found.append((off, np.array([*logs, alpha, beta])))
        return [start for _, start in sorted(found, key=lambda pair: pair[0])[:STARTS]]

    def follow(self, theta: Floats) -> Floats:
        """To the least Huber loss from there, with the threshold that the noise there gives."""
        with np.errstate(all="ignore"):  # a bad start may run away, and is not chosen
            found = least_squares(
                self.residuals,
                theta,
                self.jacobian,
                loss="huber",
                f_scale=HUBER * self.noise(theta),
                x_scale="jac",
            )
        return np.asarray(found.x)

    def noise(self, theta: Floats) -> float:
        """The standard deviation by the median residual, which outliers do not move."""
        with np.errstate(all="ignore"):
            found = np.median(np.abs(self.residuals(theta))) / 0.6745
        free = len(self.x) - 5
        return max(1e-6, float(found) * (len(self.x) / free) ** 0.5) if found < np.inf else np.inf

    def covariance(self, theta: Floats, noise: float) -> Floats:
        """Of (a, b, E, alpha, beta): Huber 1981, section 7.6. E itself may be 0; its logarithm may not.

        What the data leave open gets a variance that is as good as infinite.
        """
        off = self.residuals(theta) / noise
        inside = float(np.mean(np.abs(off) < HUBER))
        free = len(off) - 5
        correction = 1 + 5 / len(off) * (1 - inside) / inside
        variance = np.sum(np.clip(off, -HUBER, HUBER) ** 2) / free / inside**2 * correction**2
        slopes = self.jacobian(theta)
        slopes[:, 2] = np.exp(-self.terms(theta)[0])
        length = np.maximum(np.linalg.norm(slopes, axis=0), 1e-12)
        _, values, vectors = np.linalg.svd(slopes / length, full_matrices=False)
        half = vectors.T / np.maximum(values, 1e-9) / length[:, None]
        return np.asarray(noise**2 * variance * half @ half.T)
