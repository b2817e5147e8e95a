"""The training loop: samples in, steps done, events out. Everything around a step is a callback.

The loop runs on every rank alike. Per step there are two small collectives on the CPU beside those of
the model: one before it (tokens of the global batch, whether to stop, whether a rank could not read)
and one behind it (loss, times, energy).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.errors import PanthalassaError
from panthalassa.model.transformer import Transformer
from panthalassa.storage import Storage
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import Samples, ShardReader
from panthalassa.train.agreement import raise_together, total
from panthalassa.train.board import Poster
from panthalassa.train.callback import Callback
from panthalassa.train.checkpoint import Identity, State
from panthalassa.train.events import Evaluated, Started, Step
from panthalassa.train.schedule import learning_rate
from panthalassa.train.step import MicroBatch, micro_batches, target_tokens, train_step


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
    flops_per_token: float
    peak_flops: float
    """FLOP/s of all ranks."""
    poster: Poster
    """Tells the driver, and knows whether to stop."""
    step: int = 0
    """Optimizer steps done."""
    evaluations: list[Evaluated] = field(default_factory=list)
    """Held-out losses so far, those of earlier attempts included."""
    interrupted: bool = False
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = State(self.model, self.optimizer)

    @property
    def partition(self) -> Partition:
        dp = self.mesh["dp"]
        return Partition(self.config.train.global_batch, dp.size(), dp.get_local_rank())

    @property
    def reads(self) -> bool:
        """Whether this rank reads for its tensor-parallel group."""
        return self.mesh["tp"].get_local_rank() == 0


def identity(config: Config, manifest: Manifest) -> Identity:
    """What makes a checkpoint fit a run: the model, and what the order of the samples depends on."""
    return Identity(
        model=config.model.model_dump(exclude={"preset"}),
        corpus=manifest.fingerprint,
        seed=config.run.seed,
        temperature=config.stream.temperature,
        sequence_length=config.train.sequence_length,
        global_batch=config.train.global_batch,
    )


def train(run: TrainingRun, stream: Iterator[Samples], callbacks: Sequence[Callback]) -> None:
    """Run the steps that are left, or fewer when asked to stop.

    stream: this rank's samples of one step after the other, from step `run.step` on; of ranks that do
    not read, never touched. Raises a PanthalassaError on all ranks when one could not read.
    """
    try:
        start = time.perf_counter()
        for callback in callbacks:
            callback.on_start(run)
        run.poster.post(Started("evaluation", time.perf_counter() - start))
        while run.step < run.config.train.steps and not run.interrupted:
            _one_step(run, stream, callbacks)
        for callback in callbacks:
            callback.on_end(run)
    finally:
        for callback in callbacks:
            callback.close()


def _one_step(run: TrainingRun, stream: Iterator[Samples], callbacks: Sequence[Callback]) -> None:
    config, start = run.config.train, time.perf_counter()
    for callback in callbacks:
        callback.before_step(run)
    batches = next_batches(run, stream)
    data_seconds = time.perf_counter() - start
    tokens, stopping = total(target_tokens(batches) if run.reads else 0, run.poster.stopping)
    rate = learning_rate(run.step, config.steps, config.optimizer.learning_rate, config.schedule)
    keep_gathered = run.config.parallel.keep_gathered
    loss_sum, norm = train_step(
        run.model, run.optimizer, batches, run.mesh, config, int(tokens), rate, keep_gathered
    )
    measured: dict[str, float] = {"loss": loss_sum.item() if run.reads else 0.0}
    seconds = time.perf_counter() - start
    for callback in callbacks:
        measured |= callback.measure(run)
    sums = dict(zip(measured, total(*measured.values()), strict=True))
    run.step += 1
    run.interrupted = stopping > 0
    positions = config.global_batch * config.sequence_length
    flops = positions * run.flops_per_token / seconds
    step = Step(
        step=run.step,
        at=time.time(),
        loss=sums["loss"] / tokens,
        grad_norm=norm.item(),
        learning_rate=rate,
        tokens=int(tokens),
        seconds=seconds,
        data_seconds=data_seconds,
        tokens_per_second=positions / seconds,
        mfu=flops / run.peak_flops,
        joules=None if np.isnan(joules := sums.get("joules", np.nan)) else joules,
    )
    run.poster.post(step)
    for callback in callbacks:
        callback.after_step(run, step)


def next_batches(run: TrainingRun, stream: Iterator[Samples]) -> list[MicroBatch]:
    """The micro-batches of the next step: read by the first rank of each tensor-parallel group."""
    samples, error = None, None
    if run.reads:
        try:
            samples = next(stream)
        except PanthalassaError as caught:
            error = caught
    if total(error is not None)[0]:
        raise_together(error)
    samples = share(samples, run)
    size = run.config.train.micro_batch
    count = run.partition.micro_batches(size)
    return micro_batches(samples, count, size, run.device)


def share(samples: Samples | None, run: TrainingRun) -> Samples:
    """Hand the reader's samples to the other ranks of its tensor-parallel group."""
    group = run.mesh["tp"].get_group()
    if run.mesh["tp"].size() == 1:
        assert samples is not None
        return samples
    shape = (2, run.partition.samples, run.config.train.sequence_length)
    both = torch.empty(shape, dtype=torch.int32)
    if samples is not None:
        both = torch.from_numpy(np.stack((samples.tokens, samples.documents)))
    dist.broadcast(both, group=group, group_src=0)
    tokens, documents = both.numpy()
    return Samples(tokens, documents)
