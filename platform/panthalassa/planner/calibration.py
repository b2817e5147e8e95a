"""The factors of the roofline: fitted to published runs, and how well they then predict.

In come runs whose speed is known; out come `Factors`. The fit is one least-squares problem over
ln(predicted / measured), in which every run counts alike, and every factor starts from what its
hardware is known to reach and departs from it at a price. So runs decide what they determine, and
the rest stays physical. No factor belongs to a row or to a family.

`python -m panthalassa.planner.calibration` (`make planner-calibration`) fits, leaves each family
out in turn, and writes calibration.yaml (the factors), calibration.csv (every run, predicted and
measured) and the figure.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from panthalassa.errors import PanthalassaError
from panthalassa.planner.calibration_figure import draw
from panthalassa.planner.counts import Counts
from panthalassa.planner.hardware import Cluster
from panthalassa.planner.power import published
from panthalassa.planner.published import Run, runs
from panthalassa.planner.speed import Factors, speed

HERE = Path(__file__).parent
FACTORS = HERE / "calibration.yaml"
RESIDUALS = HERE / "calibration.csv"
FIGURE = HERE.parents[2] / "docs" / "planner-calibration.svg"

NOISE = 0.05
"""Standard deviation of ln(predicted / measured) that is expected of one published run."""
INSIDE = 0.9
"""Share of the runs of families left out that the range of a prediction has to hold."""

Floats = NDArray[np.float64]


class Case(Protocol):
    """A run whose speed is known."""

    @property
    def counts(self) -> Counts: ...
    @property
    def cluster(self) -> Cluster: ...
    @property
    def measured(self) -> float:
        """Tokens/s/GPU."""


@dataclass(frozen=True)
class Prior:
    """What is known of a factor before any run is."""

    value: float
    doubt: float
    """Standard deviation of its logarithm; 0 keeps it as it is."""
    most: float = 1.0


PRIORS = {
    # Large products reach 70 to 85 % of the data sheet on an A100 and less on an H100, whose clock
    # its power limits (github.com/stas00/ml-engineering, compute/accelerator: maximum achievable
    # matmul FLOPS).
    "matmul.ampere": Prior(0.75, 0.3, 0.9),
    "matmul.hopper": Prior(0.65, 0.3, 0.9),
    # FlashAttention-2 forward and backward, causal, heads of 128: Dao 2023 (arXiv:2307.08691),
    # figures 4 and 7
    "attention.ampere": Prior(0.5, 0.15),
    "attention.hopper": Prior(0.33, 0.15),
    # Copies in stream benchmarks reach 80 to 90 %, kernels with arithmetic less.
    "memory": Prior(0.7, 0.25),
    # Bus bandwidth that NCCL's tests show of large messages: about 230 of 300 GB/s on A100s, 360 of
    # 450 on H100s
    "link": Prior(0.75, 0.1),
    "network": Prior(0.75, 0.15),
    "contention": Prior(0.3, 0.5),
    "hop_seconds": Prior(5e-6, 0.0),
    "pass_seconds": Prior(1e-4, 0.7),
    "step_seconds": Prior(0.05, 0.7),
    "straggling": Prior(0.01, 0.7),
}
"""By name; a dot leads into a mapping."""


@cache
def factors() -> Factors:
    """Those of calibration.yaml."""
    found = yaml.safe_load(FACTORS.read_text())
    return Factors(**found["factors"])


@dataclass(frozen=True)
class Fit:
    """Factors, and how sure each is."""

    factors: Factors
    """Their spread is left at 0."""
    doubt: Mapping[str, float]
    """Standard deviation of the logarithm of each that was free, as `Prior.doubt`."""


def fit(cases: Sequence[Case], priors: Mapping[str, Prior], noise: float = NOISE) -> Fit:
    """The factors that these runs and priors agree on best.

    noise: standard deviation of ln(predicted / measured) that is expected of a run. Raises
    PanthalassaError without a run.
    """
    if not cases:
        raise PanthalassaError("no run to fit the speed to: give at least one that was measured")
    free = {name: prior for name, prior in priors.items() if prior.doubt}
    start = np.log([prior.value for prior in free.values()])
    doubt = np.array([prior.doubt for prior in free.values()])
    most = np.log([prior.most for prior in free.values()])

    def told(logs: Floats) -> Factors:
        fixed = {name: prior.value for name, prior in priors.items() if not prior.doubt}
        return _named({**fixed, **dict(zip(free, map(float, np.exp(logs)), strict=True))})

    def residuals(logs: Floats) -> Floats:
        return np.concatenate([errors(cases, told(logs)) / noise, (logs - start) / doubt])

    found = least_squares(residuals, start, bounds=(start - 6 * doubt - 1, most))
    sure = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    return Fit(told(found.x), dict(zip(free, map(float, sure), strict=True)))


def errors(cases: Sequence[Case], found: Factors) -> Floats:
    """ln(predicted / measured) of each."""
    predicted = [speed(c.counts, c.cluster, found).tokens_per_second_per_gpu for c in cases]
    ratios: Floats = np.array(predicted) / np.array([c.measured for c in cases])
    return np.log(ratios)


def _named(values: Mapping[str, float]) -> Factors:
    tree: dict[str, Any] = {"spread": 0.0}
    for name, value in values.items():
        key, _, inner = name.partition(".")
        if inner:
            tree.setdefault(key, {})[inner] = value
        else:
            tree[key] = value
    return Factors(**tree)


@dataclass(frozen=True)
class Calibration:
    """A fit, and what it says of runs that it has and has not seen."""

    factors: Factors
    fitted: Sequence[Run]
    checked: Sequence[Run]
    left_out: Floats
    """ln(predicted / measured) of each fitted run by factors that none of its family went into."""


def calibrate() -> Calibration:
    """Fit to the published runs, once with all, and once without each family."""
    known = list(runs())
    fitted = [run for run in known if run.use == "fit"]
    left_out = np.zeros(len(fitted))
    for family in sorted({run.family for run in fitted}):
        others = fit([run for run in fitted if run.family != family], PRIORS).factors
        mine = [number for number, run in enumerate(fitted) if run.family == family]
        left_out[mine] = errors([fitted[number] for number in mine], others)
    spread = float(np.quantile(np.abs(left_out), INSIDE))
    found = replace(fit(fitted, PRIORS).factors, spread=spread)
    return Calibration(found, fitted, [run for run in known if run.use == "check"], left_out)


def table(done: Calibration) -> list[dict[str, str]]:
    """Every run: what was measured, predicted, and how far apart they are."""
    away = {run.id: error for run, error in zip(done.fitted, done.left_out, strict=True)}
    lines = []
    for run in [*done.fitted, *done.checked]:
        found = speed(run.counts, run.cluster, done.factors)
        predicted = found.tokens_per_second_per_gpu
        lines.append(
            {
                "id": run.id,
                "family": run.family,
                "use": run.use,
                "measured": f"{run.measured:.1f}",
                "predicted": f"{predicted:.1f}",
                "low": f"{found.low:.1f}",
                "high": f"{found.high:.1f}",
                "error_pct": f"{100 * (predicted / run.measured - 1):.1f}",
                "left_out_error_pct": f"{100 * np.expm1(away[run.id]):.1f}"
                if run.id in away
                else "",
                "mfu_pct": f"{100 * found.mfu:.1f}",
                "hfu_pct": f"{100 * found.hfu:.1f}",
                "bound": found.bound,
            }
        )
    return lines


def explain(done: Calibration) -> Iterator[tuple[str, str]]:
    """What people want to know of a calibration: names and what stands beside them."""
    for field in fields(Factors):
        value = getattr(done.factors, field.name)
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        yield field.name, ", ".join(f"{name} {number:.4g}".strip() for name, number in parts)
    sets = {
        "fitted": (done.fitted, errors(done.fitted, done.factors)),
        "family left out": (done.fitted, done.left_out),
        "never fitted": (done.checked, errors(done.checked, done.factors)),
    }
    for name, (those, logs) in sets.items():
        off = np.abs(np.expm1(logs))
        inside = np.mean(np.abs(logs) <= done.factors.spread)
        yield (
            name,
            f"median error {np.median(off):.1%}, worst {off.max():.1%} "
            f"({those[int(off.argmax())].id}); {inside:.0%} of {len(those)} runs inside the range",
        )
        for family in sorted({run.family for run in those}):
            mine = off[[run.family == family for run in those]]
            yield (
                f"  {family}",
                f"{len(mine)} runs: median {np.median(mine):.1%}, worst {mine.max():.1%}",
            )


def main() -> None:
    """Fit, write the three files, and print what came of it."""
    done = calibrate()
    plain = {
        field.name: dict(value) if isinstance(value, Mapping) else value
        for field in fields(Factors)
        for value in [getattr(done.factors, field.name)]
    }
    rounded = {
        name: {key: _round(part) for key, part in value.items()}
        if isinstance(value, dict)
        else _round(value)
        for name, value in plain.items()
    }
    head = "# Written by `make planner-calibration`; what each means stands at speed.Factors.\n"
    FACTORS.write_text(head + yaml.safe_dump({"factors": rounded}, sort_keys=False))
    lines = table(done)
    with RESIDUALS.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(draw(lines, _round(done.factors.spread)))
    energies = (
        (
            f"energy {one.id}",
            f"{one.mwh:,.1f} MWh published, {one.by_convention:,.1f} by TDP x PUE "
            f"({one.convention_error:+.1%}), {one.ours:,.1f} with nodes ({one.error:+.1%}); "
            f"{one.tonnes:,.1f} t CO2 published ({one.tonnes_error:+.1%})",
        )
        for one in published()
    )
    for name, text in (*explain(done), *energies):
        print(f"{name:<22} {text}")


def _round(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
