"""A run in Prometheus: gauges that Ray exports at the metrics port of a node, with the prefix `ray_`.

`k8s/monitoring/` shows them and alerts by them. An embedded Ray has them only with
`cluster.dashboard_port`.
"""

import math

from ray.util.metrics import Gauge

GAUGES = {
    "panthalassa_step": "Steps done",
    "panthalassa_loss": "Loss of the newest step, nats a token (DPO: a pair)",
    "panthalassa_step_seconds": "Time of the newest step",
    "panthalassa_data_wait_seconds": "The longest time a rank waited for its samples in that step",
    "panthalassa_tokens_per_second": "Positions processed a second, over all ranks",
    "panthalassa_mfu_ratio": "Model FLOPs utilisation",
    "panthalassa_joules_per_iteration": "Energy of the newest step; NaN where it is not known",
    "panthalassa_goodput_ratio": "Share of the run's time so far that trained the model",
    "panthalassa_checkpoint_timestamp_seconds": "When the newest checkpoint was committed (its age is "
    "what the dashboard shows: so it grows also while nothing is reported)",
}
"""Names and descriptions."""


class Gauges:
    """The gauges of one run; Ray has to be connected."""

    def __init__(self, run: str) -> None:
        self._gauges = {name: Gauge(name, text, ("run",)) for name, text in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def set(self, **values: float | None) -> None:
        """Set gauges by their names without `panthalassa_`; None makes one NaN, as it is not what it was
        any more."""
        for name, value in values.items():
            self._gauges[f"panthalassa_{name}"].set(math.nan if value is None else value)
