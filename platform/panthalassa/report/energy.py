"""What a report says of a run's energy: joules of each step, and the account, or why there is none."""

from dataclasses import dataclass

import numpy as np

from panthalassa.report.series import Series

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """The energy of a run, of all devices that were measured."""

    j_per_iteration: float
    """Over the steps that stand."""
    bound: float | None
    """Relative bound of its error; None when it is not known."""
    kwh: float
    whole: bool
    """Whether `kwh` is the whole run's, or only that of the steps that stand."""
    source: str
    explained: list[tuple[str, str]]
    """The account, for people."""


def energy_of(metrics: dict[str, Series]) -> Energy | str:
    """The energy of a run, or why it is not known."""
    joules = metrics.get("joules")
    if joules is None or not np.isfinite(joules.value).any():
        return (
            "Energy was not measured: the run has no joules in its metrics. There was no power source "
            "that its ranks could read (NVML, RAPL), or energy.source is none."
        )
    total = float(np.nansum(joules.value))
    return Energy(float(np.nanmean(joules.value)), None, total / JOULES_PER_KWH, False, "", [])
