"""What a run tells the outside, as plain records.

Rank 0 posts them; the driver shows them and hands them to tracking. Durations are seconds, losses
nats a token.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from panthalassa.energy.lines import Line


@dataclass(frozen=True)
class Started:
    """One part of the time to the first step has passed."""

    part: str
    seconds: float
    at: float = field(default_factory=time.time, compare=False)
    """When it was over, in seconds since 1970."""


@dataclass(frozen=True)
class Evaluated:
    """The loss on held-out text after `step` steps; part of a checkpoint, too."""

    step: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class Ready:
    """The ranks hold the model."""

    parameters: int
    trained: int
    """Those of them that are trained."""
    dp_size: int
    tp_size: int
    peak_flops: float
    """FLOP/s of all ranks."""
    peak_is_measured: bool
    first_step: int
    evaluations: tuple[Evaluated, ...]
    """Of earlier attempts of the same run."""
    power: str
    """The source of power, or why there is none."""


@dataclass(frozen=True)
class Step:
    step: int
    """Steps done, this one included."""
    at: float
    """When it was done, in seconds since 1970."""
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    """Positions that count in the loss, over all ranks."""
    seconds: float
    data_seconds: float
    """The longest time a rank waited for its samples; part of `seconds`."""
    tokens_per_second: float
    """Positions processed a second, over all ranks: sequence x global batch / seconds."""
    mfu: float
    joules: float | None
    """Energy of all devices that are measured; None without a power source."""
    skipped: bool = False
    """Whether the guard left out the update."""


@dataclass(frozen=True)
class Saved:
    step: int
    uri: str
    seconds: float
    """From the copy of the state to its commit."""
    size: int
    """Bytes."""
    stall_seconds: float = 0.0
    """For which the training loop stood still."""
    sha256: str = ""
    """Of the commit, which holds those of all files."""


@dataclass(frozen=True)
class Generated:
    prompt: str
    text: str


@dataclass(frozen=True)
class Notice:
    text: str


@dataclass(frozen=True)
class Ended:
    step: int
    interrupted: bool


@dataclass(frozen=True)
class Failed:
    """A PanthalassaError on the ranks: the run can not go on until somebody mends it."""

    message: str


@dataclass(frozen=True)
class Waited:
    """The driver waited for places to run on."""

    seconds: float


@dataclass(frozen=True)
class Launched:
    """The driver asks for the ranks of an attempt."""

    workers: int
    nodes: int


@dataclass(frozen=True)
class Lost:
    """The ranks of an attempt ended before the run did."""

    reason: str
    planned: bool = False
    """They were asked to, with a checkpoint, because nodes come or go."""


@dataclass(frozen=True)
class Spent:
    """Training stood still on rank 0 for this."""

    what: Literal["compile", "evaluation", "checkpoint"]
    seconds: float
    at: float = field(default_factory=time.time, compare=False)
    """When it was over, in seconds since 1970."""


@dataclass(frozen=True)
class Metered:
    """A line for the energy ledger."""

    line: Line


@dataclass(frozen=True)
class NodeLoad:
    """How busy a node is that holds ranks."""

    node: str
    hardware: str
    load: Mapping[str, float]
    """By MLflow's names of system metrics."""


Event = (
    Started
    | Ready
    | Step
    | Evaluated
    | Saved
    | Generated
    | Notice
    | Ended
    | Failed
    | Waited
    | Launched
    | Lost
    | Spent
    | Metered
    | NodeLoad
)
