"""Lines of an energy ledger: steps of a second and ten tokens each, on GPUs with counters."""

from panthalassa.energy.account import Account
from panthalassa.energy.lines import Joules, Metering, Steps
from panthalassa.energy.table import explain

T = 1_700_000_000.0
A, B = "GPU-0a", "GPU-0b"


def steps_of(
    at: float, first: int, joules: list[float | None], before: Joules | None = None
) -> Steps:
    """Steps of a second and ten tokens each."""
    count = len(joules)
    return Steps(
        at=T + at,
        first=first,
        seconds=[1.0] * count,
        tokens=[10] * count,
        joules=joules,
        data_wait=[0.0] * count,
        before=before or {},
    )


def metering(at: float, **counters: float | None) -> Metering:
    devices = {f"GPU-{name}": value for name, value in counters.items()}
    return Metering(at=T + at, source="nvml counter", refresh=0.02, devices=devices)


def text_of(found: Account) -> str:
    return "\n".join(f"{name} {text}" for name, text in explain(found))
