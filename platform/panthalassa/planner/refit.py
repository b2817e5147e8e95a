"""Calibration from a run of one's own: what its steps took decides the factors of its hardware.

In come `Observation`s, steps of known counts that were timed; out comes `Own`, factors and
assumptions with which `speed` and `power` predict other sizes on that hardware. It is the fit of
`calibration` with other priors: where published runs know the hardware, from their factors and
close to them; where they do not (a CPU), from a wide guess. A factor that the observations do not
determine stays what it was, and is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from panthalassa.errors import PanthalassaError
from panthalassa.planner.calibration import PRIORS, Prior, factors, fit
from panthalassa.planner.counts import Counts
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.power import Assumptions, calibrated
from panthalassa.planner.speed import Factors, speed

NOISE = 0.02
"""Standard deviation of ln(predicted / measured) that is expected of the median of one's own
steps."""
NEAR = 0.15
"""Doubt of a share that published runs determined: how far software and clusters differ."""
WIDE = 1.0
"""Doubt of a share on hardware that no published run had."""
SECONDS = 2.0
"""Doubt of latencies, which are those of the software and the host."""


@dataclass(frozen=True)
class Observation:
    """Steps of one layout that were measured."""

    counts: Counts
    cluster: Cluster
    seconds: float
    """Of a step: the median of many."""
    joules: float | None = None
    """Of a step, of one GPU; None where there is no meter."""

    @property
    def measured(self) -> float:
        """Tokens/s/GPU."""
        return self.counts.tokens / self.seconds


@dataclass(frozen=True)
class Own:
    """What one's own run says of its hardware."""

    factors: Factors
    assumptions: Assumptions
    """The default ones, with draws as measured if joules were."""
    determined: Sequence[str]
    """The factors of which the observations told more than was known before."""
    assumed: Sequence[str]
    """Those of which they did not."""


def refit(observations: Sequence[Observation], known: Factors | None = None) -> Own:
    """Fit the factors of the hardware that was observed.

    known: what is known before, the published calibration by default. All observations are of one
    kind of GPU. Raises PanthalassaError when they are not, when there is none, and for steps that
    took no time or were faster than the peak of their hardware.
    """
    _check(observations)
    known = known or factors()
    generation = observations[0].cluster.gpu.generation
    priors = _priors(known, generation)
    found = fit(observations, priors, NOISE)
    told = {name for name, doubt in found.doubt.items() if doubt < priors[name].doubt / 2}
    metered = [one for one in observations if one.joules is not None]
    assumptions = Assumptions()
    if metered:
        one = metered[0]
        watts = [one.joules / one.seconds for one in metered if one.joules is not None]
        assumptions = calibrated(speed(one.counts, one.cluster, found.factors), one.cluster, watts)
    return Own(
        factors=replace(found.factors, spread=known.spread),
        assumptions=assumptions,
        determined=sorted(told),
        assumed=sorted(set(found.doubt) - told),
    )


def _check(observations: Sequence[Observation]) -> None:
    names = {one.cluster.gpu.name for one in observations}
    if not names:
        raise PanthalassaError("no step was measured: give at least one, of two layouts if you can")
    if len(names) > 1:
        raise PanthalassaError(
            f"steps on {', '.join(sorted(names))} were given together: fit each kind of GPU for itself"
        )
    for one in observations:
        if not one.seconds > 0 or (one.joules is not None and one.joules < 0):
            raise PanthalassaError(
                f"a step of {one.seconds} s and {one.joules} J was given: both are positive"
            )
        gpu = one.cluster.gpu
        mfu = one.counts.model_flops / one.seconds / gpu.peak
        if mfu > 1:
            raise PanthalassaError(
                f"a step of {one.seconds:.3g} s would be {mfu:.0%} of the peak of {gpu.name}: its "
                "unit is the second, and its counts those of one GPU"
            )


def _priors(known: Factors, generation: str) -> Mapping[str, Prior]:
    published = generation in known.matmul
    doubt = NEAR if published else WIDE
    priors = {
        f"matmul.{generation}": Prior(known.matmul[generation] if published else 0.5, doubt),
        f"attention.{generation}": Prior(known.attention[generation] if published else 0.3, doubt),
    }
    for name, prior in PRIORS.items():
        if "." not in name:
            latency = name in ("pass_seconds", "step_seconds")
            free = SECONDS if latency else doubt
            priors[name] = Prior(getattr(known, name), free if prior.doubt else 0.0, prior.most)
    return priors
