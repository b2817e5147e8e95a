"""The training loop: samples in, steps done, events out. Everything around a step is a callback.

The loop runs on every rank alike. Per step there are two small collectives on the CPU beside those of
the model: one before it (tokens of the global batch, whether to stop, whether a rank could not read)
and one behind it (loss, energy, and which samples were trained).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from panthalassa.config_model import Vision
from panthalassa.errors import CorpusError, PanthalassaError
from panthalassa.model.flops import flops_per_token
from panthalassa.model.vision import CHANNELS, IMAGE
from panthalassa.stream.ledger import Consumed, digest_of
from panthalassa.stream.reader import Batch, Samples, Tokens
from panthalassa.train.agreement import everywhere, raise_together, total
from panthalassa.train.callback import Callback
from panthalassa.train.events import Notice, Started, Step
from panthalassa.train.micro_batch import MicroBatch, images_of_each, micro_batches
from panthalassa.train.schedule import learning_rate
from panthalassa.train.step import train_step
from panthalassa.train.training_run import TrainingRun


@dataclass(frozen=True)
class Input:
    """What a step works on."""

    batch: Batch | None
    """This rank's samples; None on ranks that do not read."""
    tokens: int
    """Positions that count in the loss, over all ranks."""
    units: int
    """Of what the loss is a mean, over all ranks."""
    stopping: bool
    """Whether a rank was asked to stop after this step."""
    began: float
    """On the clock of time.perf_counter()."""
    data_seconds: float


def train(run: TrainingRun, stream: Iterator[Batch], callbacks: Sequence[Callback]) -> None:
    """Run the steps that are left, or fewer when asked to stop.

    stream: this rank's samples of one step after the other, from step `run.step` on; of ranks that do
    not read, never touched. When a rank can not read, a checkpoint is saved before a PanthalassaError
    is raised on all of them.
    """
    problem: PanthalassaError | None = None
    try:
        start = time.perf_counter()
        for callback in callbacks:
            run.beat()
            callback.on_start(run)
        run.poster.post(Started("evaluation", time.perf_counter() - start))
        while run.step < run.config.train.steps and not run.interrupted:
            try:
                _one_step(run, _next_input(run, stream, callbacks), callbacks)
            except PanthalassaError as error:
                if not error.agreed:
                    raise
                problem, run.interrupted = error, True
        try:
            _call_all(run, callbacks, lambda callback: callback.on_end(run))
        finally:
            if problem:
                raise problem
    finally:
        for callback in callbacks:
            callback.close()


def _next_input(run: TrainingRun, stream: Iterator[Batch], callbacks: Sequence[Callback]) -> Input:
    began = time.perf_counter()
    run.beat()
    for callback in callbacks:
        callback.before_step(run)
    batch, error = None, None
    if run.reads:
        try:
            batch = next(stream)
            if vision := run.config.model.vision:
                images_of_each(batch.samples, vision)
        except PanthalassaError as caught:
            error = caught
    seconds = run.local_seconds = time.perf_counter() - began
    mine = (batch.samples.targets, run.objective.units(batch.samples)) if batch else (0, 0)
    unread, tokens, units, stopping = total(error is not None, *mine, run.poster.stopping)
    if tokens == 0 and not unread:
        error = CorpusError(
            f"step {run.step + 1} has nothing to train on: none of its samples could be read"
        )
    if tokens == 0 or unread:
        raise_together(error)
    for callback in callbacks:
        callback.after_input(run)
    return Input(batch, int(tokens), int(units), stopping > 0, began, seconds)


def _one_step(run: TrainingRun, given: Input, callbacks: Sequence[Callback]) -> None:
    config, phase = run.config.train, run.phase
    rate = learning_rate(run.step, config.steps, config.optimizer.learning_rate, config.schedule)
    guard = run.state.guard
    if run.step == phase.first_step:
        guard.forget()
    batches = _micro_batches(run, given.batch)
    loss_sum, norm = train_step(
        run.model,
        run.optimizer,
        batches,
        run.mesh,
        config,
        run.objective,
        given.units,
        rate,
        run.config.parallel.keep_gathered,
        guard,
        run.config.guard,
    )
    measured: dict[str, float] = {
        "loss": loss_sum.item() if run.reads else 0.0,
        "skips": guard.skips.item() if dist.get_rank() == 0 else 0.0,
    }
    if run.config.model.vision:
        measured["images"] = _images_in(given.batch)
    for callback in callbacks:
        measured |= callback.measure(run)
    every = total(*measured.values(), *_trained(given.batch))
    run.measured = sums = dict(zip(measured, every, strict=False))
    skipped = sums["skips"] > 0
    _record(run, given.batch, every[len(measured) :], skipped)
    run.step += 1
    seconds = time.perf_counter() - given.began
    run.interrupted = given.stopping
    positions = phase.global_batch * phase.sequence_length
    per_token = flops_per_token(
        run.config.model,
        run.parameters,
        phase.sequence_length,
        run.trained,
        run.objective.forward_only,
        sums.get("images", 0.0) / positions,
    )
    step = Step(
        step=run.step,
        at=time.time(),
        loss=sums["loss"] / given.units,
        grad_norm=norm.item(),
        learning_rate=rate,
        tokens=given.tokens,
        seconds=seconds,
        data_seconds=given.data_seconds,
        tokens_per_second=positions / seconds,
        mfu=positions * per_token / seconds / run.peak_flops,
        joules=None if np.isnan(joules := sums.get("joules", np.nan)) else joules,
        skipped=skipped,
    )
    run.poster.post(step)
    _call_all(run, callbacks, lambda callback: callback.after_step(run, step))


def _call_all(
    run: TrainingRun, callbacks: Sequence[Callback], call: Callable[[Callback], None]
) -> None:
    """Call a hook of every callback, also behind one that fails: a checkpoint is saved all the same."""
    problem: PanthalassaError | None = None
    for callback in callbacks:
        run.beat()
        try:
            call(callback)
        except PanthalassaError as error:
            if not error.agreed:
                raise
            problem = problem or error
    if problem:
        raise problem


def _images_in(batch: Batch | None) -> int:
    return 0 if batch is None or batch.samples.images is None else len(batch.samples.images)


def _trained(batch: Batch | None) -> tuple[float, ...]:
    """Seven numbers for the ledger, to be summed over the ranks."""
    if batch is None:
        return (0,) * 7
    return (batch.read, batch.image_samples, *batch.limbs, len(batch.unreadable))


def _record(run: TrainingRun, batch: Batch | None, sums: Sequence[float], skipped: bool) -> None:
    """Enter into the ledger what all ranks together have trained on."""
    samples, images, *limbs, unreadable = sums
    masked = everywhere(batch.unreadable if batch else []) if unreadable else []
    if masked and not run.leaves_out:
        run.leaves_out = True
        run.poster.post(
            Notice(
                f"step {run.step + 1} leaves out {len(masked)} of {run.phase.global_batch} samples, "
                "which can not be read; `panthalassa audit` will list all such"
            )
        )
    if run.ledger:
        run.ledger.record(
            Consumed(
                step=run.step,
                samples=int(samples),
                digest=digest_of(limbs),
                quarantined=sorted(masked),
                images=int(images),
                skipped=skipped,
            )
        )


def _micro_batches(run: TrainingRun, batch: Batch | None) -> list[MicroBatch]:
    """This rank's micro-batches, from the first rank of its tensor-parallel group."""
    samples = share(batch.samples if batch else None, run)
    size = run.config.train.micro_batch
    start = time.perf_counter()
    count, vision = run.partition.micro_batches(size), run.config.model.vision
    batches = micro_batches(samples, count, size, run.device, vision)
    run.local_seconds += time.perf_counter() - start
    return batches


def share(samples: Samples | None, run: TrainingRun) -> Samples:
    """Hand the reader's samples to the other ranks of its tensor-parallel group."""
    group = run.mesh["tp"].get_group()
    if run.mesh["tp"].size() == 1:
        assert samples is not None
        return samples
    shape = (2, run.partition.samples, run.phase.sequence_length)
    both = torch.empty(shape, dtype=torch.int32)
    if samples is not None:
        both = torch.from_numpy(np.stack((samples.tokens, samples.marked)))
    dist.broadcast(both, group=group, group_src=0)
    received = Samples.unmarked(*both.numpy())
    if vision := run.config.model.vision:
        return replace(received, images=_images(samples, received.tokens, vision, group))
    return received


def _images(
    samples: Samples | None, tokens: Tokens, vision: Vision, group: dist.ProcessGroup
) -> NDArray[np.uint8] | None:
    """The images that tokens [samples, sequence] speak of, from the rank that has read them."""
    if (number := int((tokens == IMAGE).sum()) // vision.tokens) == 0:
        return None
    size = vision.image_size
    images = torch.empty((number, size, size, CHANNELS), dtype=torch.uint8)
    if samples is not None and samples.images is not None:
        images = torch.from_numpy(samples.images.copy())
    dist.broadcast(images, group=group, group_src=0)
    return images.numpy()
