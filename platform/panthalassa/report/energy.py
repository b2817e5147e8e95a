"""What a report says of a run's energy: joules of each step, and the account, or why there is none."""

from dataclasses import dataclass

import numpy as np

from panthalassa.report.series import Series

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """The energy of a run, of all devices that were measured."""

    steps: Series
    """Joules of each step that stands."""
    bound: float | None
    """Relative bound of the error of a step's joules; None when it is not known."""
    kwh: float
    """Of the whole run; without an account, of the steps that stand."""
    whole: bool
    """Whether `kwh` holds what lost steps, checkpoints and waiting took, too."""
    source: str
    explained: list[tuple[str, str]]
    """The account, for people."""


def energy_of(metrics: dict[str, Series]) -> Energy | str:
    """The energy of a run, or why it is not known."""
    joules = metrics.get("joules")
    if joules is None or not len(joules.step):
        return (
            "Energy was not measured: the run has no joules in its metrics. There was no power source "
            "that its ranks could read (NVML, RAPL), or energy.source is none."
        )
    return Energy(joules, None, float(np.nansum(joules.value)) / JOULES_PER_KWH, False, "", [])
