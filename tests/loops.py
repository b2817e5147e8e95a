"""The real training loop on ranks of `ranks.py`, with gradients that can be spoilt.

The samples are those of `packed`; what the ledger is told of them is what stands at their positions in
CORPUS, so that a run can be audited.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from phases import CORPUS, phase
from ranks import TinyRun, packed, tiny
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.storage import open_storage
from panthalassa.stream.curriculum import Curriculum
from panthalassa.stream.ledger import Attempt, Ledger, SampleHashes, newest_attempt
from panthalassa.stream.reader import Batch, Samples
from panthalassa.train import checkpoint, restore
from panthalassa.train.agreement import everywhere
from panthalassa.train.audit import keep_manifest
from panthalassa.train.callback import Callback
from panthalassa.train.checkpointing import DAY, Checkpoints
from panthalassa.train.events import Event, Step
from panthalassa.train.loop import train
from panthalassa.train.rollback import Rollback
from panthalassa.train.training_run import TrainingRun

PHASES = [phase(0)]
HASHES = SampleHashes(CORPUS.shards)


def looping(*overrides: str) -> Config:
    return tiny(
        "train.sequence_length=16", "train.steps=40", "checkpoint.every=4", "checkpoint.keep=100",
        *overrides,
    )  # fmt: skip


class Notes:
    """A poster without a board: keeps what is posted."""

    stopping = False

    def __init__(self) -> None:
        self.events: list[Event] = []

    def post(self, event: Event) -> None:
        self.events.append(event)

    fail = post

    def flush(self) -> None:
        pass


class Crash(Exception):
    """The end of a process, as far as a test needs one."""


class Spoil(Callback):
    """Multiplies the gradients of some steps (from 0) by a factor."""

    def __init__(self, steps: Sequence[int], factor: float) -> None:
        self.steps, self.factor = steps, factor

    def on_start(self, run: TrainingRun) -> None:
        def scaled(model: Any, inputs: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss * (self.factor if run.step in self.steps else 1.0)

        run.model.register_forward_hook(scaled)


class Stop(Callback):
    """Has the run stop behind a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: TrainingRun, step: Step) -> None:
        run.interrupted = step.step == self.step


def open_run(config: Config, folder: str) -> TrainingRun:
    """A run at its newest checkpoint, or at its start."""
    storage = open_storage(folder)
    tiny_run = TinyRun(config)
    names = checkpoint.committed(storage)[-1:]
    dist.barrier()
    commit = checkpoint.read_commit(storage, names[0]) if names else None
    step = commit.step if commit else 0
    ledger = None
    if dist.get_rank() == 0:
        keep_manifest(storage, CORPUS)
        head = Attempt(
            attempt=newest_attempt(storage) + 1,
            first_step=step,
            dp_size=tiny_run.mesh["dp"].size(),
            tp_size=tiny_run.mesh["tp"].size(),
            began=1e9,
            phases=PHASES,
        )
        ledger = Ledger(storage, head)
    run = TrainingRun(
        config=config,
        manifest=CORPUS,
        storage=storage,
        reader=None,  # type: ignore[arg-type]
        mesh=tiny_run.mesh,
        device=torch.device("cpu"),
        model=tiny_run.model,
        optimizer=tiny_run.optimizer,
        parameters=1000,
        trained=1000,
        identity=config.model.identity(),
        objective=tiny_run.objective,
        peak_flops=1e9,
        curriculum=Curriculum(PHASES, CORPUS),
        ledger=ledger,
        poster=Notes(),  # type: ignore[arg-type]
        step=step,
        passed_over=list(commit.passed_over) if commit else [],
    )
    for name in names:
        restore.load(storage, name, run.state)
    return run


def stream(run: TrainingRun) -> Iterator[Batch]:
    """This rank's batches from its step on."""
    for step in range(run.step, run.config.train.steps):
        (piece,) = run.curriculum.pieces(range(step, step + 1))
        own = run.partition
        sample = np.arange(own.start, own.start + own.samples)
        place = piece.order.locate(piece.positions(np.full_like(sample, step), sample))
        every, rows = packed(step, tiny()), slice(own.start, own.start + own.samples)
        samples = Samples.of_text(every.tokens[rows, :16].copy(), every.documents[rows, :16].copy())
        yield Batch(samples, len(sample), HASHES.limbs(place).sum(axis=0), [])


def go(run: TrainingRun, *around: Callback) -> list[Event]:
    """Train as `worker.py` does; what was posted. A Crash ends it without any further ado."""
    checkpoints = Checkpoints(DAY)
    try:
        train(run, stream(run), [*around, Rollback(checkpoints), checkpoints])
    except Crash:
        dist.barrier()
    return run.poster.events  # type: ignore[attr-defined, no-any-return]


def tensors(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Copies of all of the state's, this rank's parts alone."""
    return {
        name: getattr(tensor, "_local_tensor", tensor).clone()
        for name, tensor in run.state.tensors().items()
    }


def same_on_all_ranks(values: object) -> bool:
    return len(set(everywhere([repr(values)]))) == 1
