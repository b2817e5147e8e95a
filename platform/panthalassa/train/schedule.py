"""The learning rate of a step, a pure function of the step and the configuration."""

import math

from panthalassa.config import Schedule


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The rate of step `step` (from 0) of `steps`.

    Linear warm-up to `peak`, then either a half cosine (Loshchilov & Hutter 2017, eq. 5) or a stable
    phase and a linear decay (WSD: Hu et al. 2024, MiniCPM), both down to `final_share` of the peak.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    final = peak * schedule.final_share
    if schedule.kind == "cosine":
        done = (step - schedule.warmup_steps) / max(1, steps - 1 - schedule.warmup_steps)
        return final + (peak - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    decay = max(1, round(steps * schedule.decay_share))
    left = (steps - 1 - step) / decay
    return final + (peak - final) * max(0.0, min(left, 1.0))
