"""A scaling study: the finished trials of a sweep over sizes and tokens, and the law through them.

Trials and the configurations of their runs go in; out come the fit, what it says of the ladder's own
range and of a cluster, and beside it what published laws say of the same cluster, by the same code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from panthalassa.errors import PanthalassaError
from panthalassa.model.flops import flops_per_token, peak_of
from panthalassa.report.headlines import si
from panthalassa.run_config import kept
from panthalassa.storage import Storage
from panthalassa.sweep.axes import number
from panthalassa.sweep.loss_law import CONFIDENCE, Estimate, Fit, Floats, fit
from panthalassa.sweep.optimum import (
    SIX_N,
    Cost,
    best_size,
    budget,
    cost_of,
    given_away,
    larger,
    lowest,
    optimum,
)
from panthalassa.sweep.pareto import comparable
from panthalassa.sweep.published import BESIROGLU, HOFFMANN, HOFFMANN_INTERVAL
from panthalassa.sweep.results import Trial, asked

NEEDED = ("loss", "tokens", "parameters")
FAR = 100.0
"""Times the largest run of a ladder beyond which its law is only extrapolated."""


@dataclass(frozen=True)
class Study:
    """A ladder and the law through it; arrays [trials]."""

    trials: Sequence[Trial]
    parameters: Floats
    tokens: Floats
    loss: Floats
    flops: Floats
    cost: Cost
    fit: Fit


@dataclass(frozen=True)
class Question:
    """What is asked of a law: a cluster, a size that is claimed to be optimal, and the text there is."""

    gpus: int = 512
    gpu: str = "A100"
    days: float = 14.0
    mfu: float = 0.43
    size: float = 12_291_915_776
    """Parameters; these are those of the preset panthalassa-12b."""
    text: float = 1.115e12
    """Tokens, read once; these are those of 3.2 TB at 2.87 bytes each."""

    @property
    def flops(self) -> float:
        return budget(self.gpus, self.gpu, self.days, self.mfu)


def study(folder: Storage, trials: Sequence[Trial]) -> Study:
    """The law of the finished trials of the sweep in `folder`: of each size and budget the lowest loss,
    if there are several by other keys.

    Raises PanthalassaError when there is no sweep, too little of it, or the configuration of a run is
    gone.
    """
    asked(folder)
    best: dict[tuple[float, float], Trial] = {}
    for trial in sorted(comparable(trials, NEEDED), key=lambda trial: trial.metrics["loss"]):
        best.setdefault((trial.metrics["parameters"], trial.metrics["tokens"]), trial)
    done = sorted(best.values(), key=lambda trial: trial.number)
    loss, tokens, sizes = (np.array([trial.metrics[name] for trial in done]) for name in NEEDED)
    try:
        law = fit(sizes, tokens, loss)
    except PanthalassaError as error:
        raise PanthalassaError(
            f"{error}. The sweep has {len(trials)} trials; of those that have finished and differ in "
            "neither size nor budget, the best counts"
        ) from error
    configs = [kept(folder.below(trial.run)) for trial in done]
    of_token = np.array(
        [
            flops_per_token(config.model, int(size), config.train.sequence_length)
            for config, size in zip(configs, sizes, strict=True)
        ]
    )
    return Study(done, sizes, tokens, loss, of_token * tokens, cost_of(sizes, of_token), law)


def explain(found: Study) -> Iterator[tuple[str, str]]:
    """The law of a ladder: names and what stands beside them."""
    law = found.fit
    sizes, tokens = (
        f"{text(float(values.min()))} to {text(float(values.max()))}"
        for values, text in ((found.parameters, size_text), (found.tokens, amount))
    )
    yield (
        "law",
        f"L(N, D) = E + A / N^alpha + B / D^beta through {law.runs} runs of {sizes} parameters on "
        f"{tokens} tokens",
    )
    yield from ((name, told(found) + " for both") for name, found in law.exponents.items())
    yield "E", told(law.estimate(lambda one: np.maximum(one.e, 0)))  # a loss is never below
    for name in ("A", "B"):
        yield name, told(Estimate(*np.exp(law.estimate(attrgetter(f"log_{name.lower()}")))))
    yield "noise", f"{law.noise:.2%} of a loss"
    for problem in law.undetermined:
        yield "NOT KNOWN", problem
    largest = float(found.flops.max())
    yield (
        "optimum",
        f"of {largest:.3g} FLOPs, the ladder's largest run: " + _at(law, largest, found.cost),
    )


def answer(question: Question, found: Study | None = None) -> Iterator[tuple[str, str]]:
    """What a ladder and published laws say of a cluster and of a size."""
    flops = question.flops
    yield (
        "budget",
        f"{flops:.3g} FLOPs: {question.gpus} x {question.gpu} x {question.days:g} days x "
        f"{peak_of(question.gpu) / 1e12:g} TFLOP/s x {question.mfu:.1%} MFU",
    )
    if found is not None:
        beyond = flops / float(found.flops.max())
        says = _at(found.fit, flops, found.cost)
        if beyond > FAR and not found.fit.undetermined:
            says += f", {beyond:.0e} times its largest run: an extrapolation"
        yield "this ladder", says
    yield "Besiroglu 2024", _at(BESIROGLU, flops, SIX_N)
    size = float(best_size(HOFFMANN, flops, SIX_N))
    yield (
        "Hoffmann 2022",
        f"{size_text(size)} parameters on {amount(flops / (6 * size))} tokens, loss "
        f"{float(lowest(HOFFMANN, flops, SIX_N)):.3f}; how sure is not published: of the exponent "
        f"alone, {HOFFMANN_INTERVAL[0]} to {HOFFMANN_INTERVAL[1]}, which does not hold the law's own "
        f"{float(HOFFMANN.beta / (HOFFMANN.alpha + HOFFMANN.beta)):.3f}",
    )
    yield size_text(question.size), _verdict(question)
    yield (
        "text",
        f"{amount(question.text)} tokens, read once, are too few for a budget spent on less than "
        f"{size_text(flops / (6 * question.text))} parameters",
    )


def _verdict(question: Question) -> str:
    flops, size = question.flops, question.size
    lost = given_away(BESIROGLU, size, flops, SIX_N)
    above = larger(BESIROGLU, size, flops, SIX_N)
    of_hoffmann = HOFFMANN.loss(size, flops / (6 * size)) - lowest(HOFFMANN, flops, SIX_N)
    tail = (1 - CONFIDENCE) / 2
    place = (
        "not told apart from" if tail < above < 1 - tail else "below" if above > 0.5 else "above"
    )
    return (
        f"on {amount(flops / (6 * size))} tokens is {place} the optimum, which is larger in {above:.1%} "
        f"of the laws that the replication allows. It gives away {told(lost, '{:.4f}'.format)} nats a "
        f"token (by Hoffmann's law {float(of_hoffmann):.4f})"
    )


def _at(law: Fit, flops: float, cost: Cost) -> str:
    if law.undetermined:
        return "not known, as long as the exponents are not"
    found = optimum(law, flops, cost)
    return (
        f"{told(found.parameters, size_text)} parameters on {told(found.tokens, amount)} tokens, loss "
        f"{told(found.loss)}"
    )


def told(found: Estimate, text: Callable[[float], str] = number) -> str:
    """A value and its interval."""
    return f"{text(found.value)} ({CONFIDENCE:.0%} {text(found.low)} to {text(found.high)})"


def amount(number: float) -> str:
    """A number before its unit: 516 G."""
    return si(number) if 1 <= number < 1e18 else f"{number:.1g}".replace("inf", "∞")


def size_text(parameters: float) -> str:
    """Parameters as the field counts them: 12.3 B."""
    return amount(parameters).replace(" G", " B")
