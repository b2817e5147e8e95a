"""What a rank knows of its run while it trains: the loop moves it on, callbacks look at it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh

from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.energy.lines import Phase as Use
from panthalassa.model.transformer import Transformer
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Curriculum, Phase
from panthalassa.stream.ledger import Ledger
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import ShardReader
from panthalassa.train.board import Poster
from panthalassa.train.checkpoint import State
from panthalassa.train.events import Evaluated, Spent
from panthalassa.train.objective import Objective


@dataclass
class TrainingRun:
    """One rank's view of a run: what the loop works on and callbacks may look at."""

    config: Config
    manifest: Manifest
    storage: Storage
    """The run's own folder."""
    reader: ShardReader
    mesh: DeviceMesh
    device: torch.device
    model: Transformer
    optimizer: torch.optim.Optimizer
    parameters: int
    """Of the model, over all ranks."""
    trained: int
    """Those of them that are trained."""
    identity: dict[str, Any]
    """What the weights depend on: `Commit.model`."""
    objective: Objective
    peak_flops: float
    """FLOP/s of all ranks."""
    curriculum: Curriculum
    ledger: Ledger | None
    """Kept by rank 0."""
    poster: Poster
    """Tells the driver, and knows whether to stop."""
    step: int = 0
    """Optimizer steps done."""
    evaluations: list[Evaluated] = field(default_factory=list)
    """Held-out losses so far, those of earlier attempts included."""
    measured: dict[str, float] = field(default_factory=dict)
    """What callbacks measured in the newest step, summed over the ranks."""
    interrupted: bool = False
    leaves_out: bool = False
    """Whether samples of this run could not be read and were left out."""
    passed_over: list[tuple[int, int]] = field(default_factory=list)
    """Steps [first, end) that rollbacks left behind."""
    local_seconds: float = 0.0
    """Of the step at hand, in which this rank waited for no other."""
    attempt: int = 0
    """Its number."""
    permit: Callable[[], None] = field(default=lambda: None)
    """Raises PanthalassaError when another attempt or command goes on with the run. Called by rank 0
    before it changes what others depend on."""
    beat: Callable[[], None] = field(default=lambda: None)
    """A sign of life for the watchdog."""
    enter_phase: Callable[[Use], Use] = field(default=lambda use: use)
    """Tells what energy is used for from now on; returns what it was used for before."""
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = State(self.model, self.optimizer)

    @property
    def phase(self) -> Phase:
        """The phase of the step to come."""
        return self.curriculum.phase(self.step)

    @property
    def partition(self) -> Partition:
        dp = self.mesh["dp"]
        return Partition(self.phase.global_batch, dp.size(), dp.get_local_rank())

    @contextmanager
    def spending(self, what: Literal["evaluation", "checkpoint"]) -> Iterator[None]:
        """A block for which training stands still."""
        start, before = time.perf_counter(), self.enter_phase(what)
        yield
        self.enter_phase(before)
        self.poster.post(Spent(what, time.perf_counter() - start))

    @property
    def reads(self) -> bool:
        """Whether this rank reads for its tensor-parallel group."""
        return self.mesh["tp"].get_local_rank() == 0
