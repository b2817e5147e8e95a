"""What a loss law says of a budget: the size and the tokens that reach the lowest loss with it.

A law with its uncertainty, a budget in FLOPs and what a token costs at each size go in; the optimum
comes out, with intervals that carry the law's uncertainty to it. Where a token costs k N^g FLOPs, the
optimum is the closed form of Hoffmann et al. 2022, equation 4, with g beside it:

    N = ((alpha A) / (g beta B) (C / k)^beta)^(1 / (alpha + g beta)),  D = C / (k N^g)
"""

import math
from dataclasses import dataclass

import numpy as np

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.model.flops import PEAK_BF16, peak_of
from panthalassa.sweep.loss_law import Estimate, Fit, Floats, LossLaw

DAY = 86_400.0


@dataclass(frozen=True)
class Cost:
    """FLOPs of a token, forward and backward: factor x parameters^exponent."""

    factor: float
    exponent: float

    def __call__(self, parameters: Floats | float) -> Floats:
        return np.asarray(self.factor * np.power(parameters, self.exponent))


SIX_N = Cost(6.0, 1.0)
"""As published laws count."""


@dataclass(frozen=True)
class Optimum:
    """Where a budget reaches the lowest loss."""

    flops: float
    parameters: Estimate
    tokens: Estimate
    loss: Estimate


def budget(gpus: int, gpu: str, days: float, mfu: float) -> float:
    """FLOPs that train a model: GPUs x days x peak x MFU.

    Raises PanthalassaError for an unknown GPU and for an amount that is none.
    """
    if not (gpus > 0 and 0 < days < math.inf and 0 < mfu <= 1):
        raise PanthalassaError(
            f"a budget takes GPUs and days above 0 and an MFU up to 1; found {gpus} GPUs, {days} days, "
            f"MFU {mfu}"
        )
    try:
        peak = peak_of(gpu)
    except ConfigError as error:
        raise PanthalassaError(f"unknown GPU {gpu!r}; known are {', '.join(PEAK_BF16)}") from error
    return gpus * days * DAY * peak * mfu


def cost_of(parameters: Floats, flops_per_token: Floats) -> Cost:
    """The power law through the costs of models that were trained."""
    exponent, log_factor = np.polyfit(np.log(parameters), np.log(flops_per_token), 1)
    return Cost(float(np.exp(log_factor)), float(exponent))


def best_size(law: LossLaw, flops: Floats | float, cost: Cost) -> Floats:
    """Parameters of the optimum. Laws by which size does not help have it at 0, and laws by which data
    do not help at infinity."""
    g = cost.exponent
    log_tokens_at_one = np.log(flops) - np.log(cost.factor)
    with np.errstate(all="ignore"):
        rise = np.log(law.alpha) + law.log_a - np.log(g * law.beta) - law.log_b
        logarithm = (rise + law.beta * log_tokens_at_one) / (law.alpha + g * law.beta)
        inside = np.where(law.beta > 0, np.exp(logarithm), np.inf)
        return np.where(law.alpha > 0, inside, 0.0)


def optimum(fit: Fit, flops: float, cost: Cost) -> Optimum:
    """The optimum of a budget in FLOPs, by a law."""

    def tokens(law: LossLaw) -> Floats:
        return np.asarray(flops / cost(best_size(law, flops, cost)))

    return Optimum(
        flops,
        fit.estimate(lambda law: best_size(law, flops, cost)),
        fit.estimate(tokens),
        fit.estimate(lambda law: lowest(law, flops, cost)),
    )


def lowest(law: LossLaw, flops: Floats | float, cost: Cost) -> Floats:
    """The loss of the optimum."""
    size = best_size(law, flops, cost)
    with np.errstate(all="ignore"):
        return law.loss(size, flops / cost(size))


def given_away(fit: Fit, parameters: float, flops: float, cost: Cost) -> Estimate:
    """Nats a token by which a model of that size ends above the optimum of the same budget."""
    tokens = flops / float(cost(parameters))
    return fit.estimate(lambda law: law.loss(parameters, tokens) - lowest(law, flops, cost))


def larger(fit: Fit, parameters: float, flops: float, cost: Cost) -> float:
    """The share of the laws that the data allow by which the optimum is above that size."""
    return float(np.mean(best_size(fit.sample, flops, cost) > parameters))
