"""What Ray Train runs on every rank: open the stream, build and fill the model, and loop.

The parts are in the order that makes the first step early: the stream starts first and warms up
while the model is built and the checkpoint is read.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import distributed as dist

from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.energy.meters import Absent, Meter, choose
from panthalassa.errors import PanthalassaError
from panthalassa.model.flops import flops_per_token, peak_flops
from panthalassa.model.transformer import Transformer, count_parameters
from panthalassa.parallel.mesh import build_mesh
from panthalassa.parallel.parallelize import materialize, parallelize
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.order import Order
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import Samples, ShardReader, open_stream
from panthalassa.train import callbacks, checkpoint
from panthalassa.train.agreement import together, total
from panthalassa.train.board import Poster
from panthalassa.train.events import Ended, Evaluated, Event, Failed, Ready, Started
from panthalassa.train.loop import TrainingRun, identity, train
from panthalassa.train.step import build_optimizer


@dataclass(frozen=True)
class Task:
    """What the driver hands to every rank."""

    config: Config
    manifest: Manifest
    board: Any
    submitted: float
    """When the driver asked for the workers, in seconds since 1970."""


def work(arguments: dict[str, Any]) -> None:
    """Run one rank of the Task in `arguments["task"]`.

    Errors that a user can mend are posted and end the run; others are Ray Train's to retry.
    """
    entered, task = time.time(), arguments["task"]
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(task.config.cluster.threads_per_worker)
    poster = Poster(task.board) if dist.get_rank() == 0 else None
    post: Callable[[Event], None] = poster.post if poster else lambda event: None
    post(Started("workers", entered - task.submitted))
    try:
        _run(task, post, lambda: poster is not None and poster.stopping)
    except PanthalassaError as error:
        post(Failed(str(error)))
    finally:
        if poster:
            poster.close()


def _run(task: Task, post: Callable[[Event], None], stopping: Callable[[], bool]) -> None:
    @contextmanager
    def part(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        post(Started(name, time.perf_counter() - start))

    config, manifest = task.config, task.manifest
    device = ray.train.torch.get_device()
    mesh = build_mesh(device.type, config.parallel.tp_size)
    storage = open_storage(config.run.directory).below(config.run.name)
    corpus = open_storage(config.corpus.directory)
    reader = ShardReader(corpus, manifest, config.train.sequence_length)
    with part("data"):
        with together():
            tokenizer = read_tokenizer(corpus, manifest)
        newest = _newest_checkpoint(storage)
        with together():
            commit = checkpoint.read_commit(storage, newest) if newest else None
        first_step = commit.step if commit else 0
        dp = mesh["dp"]
        partition = Partition(config.train.global_batch, dp.size(), dp.get_local_rank())
        steps = range(first_step, config.train.steps)
        stream: Iterator[Samples] = iter(())
        if mesh["tp"].get_local_rank() == 0 and steps:
            length, mix = config.train.sequence_length, config.stream.temperature
            order = Order(manifest, length, mix, config.run.seed)
            stream = open_stream(reader, order, partition, steps, config.stream.read_tasks)
    with part("model"):
        with torch.device("meta"):
            model = Transformer(config.model)
        parameters = count_parameters(model)
        parallelize(model, mesh, config.parallel)
        materialize(model, device, config.run.seed)
        optimizer = build_optimizer(model, config.train.optimizer)
    with part("meters"):
        with together():
            meter = _meter(config, device)
            peak = peak_flops(config.cluster.peak_flops, device)
        (peak,) = total(peak)
    run = TrainingRun(
        config=config,
        manifest=manifest,
        storage=storage,
        reader=reader,
        mesh=mesh,
        device=device,
        model=model,
        optimizer=optimizer,
        flops_per_token=flops_per_token(config.model, parameters, config.train.sequence_length),
        peak_flops=peak,
        post=post,
        stopping=stopping,
        step=first_step,
        evaluations=list(commit.evaluations) if commit else [],
    )
    if newest:
        with part("checkpoint"):
            checkpoint.load(storage, newest, run.state, identity(config, manifest))
    measured = config.cluster.peak_flops == "auto" and device.type == "cpu"
    power = meter.reason if isinstance(meter, Absent) else meter.source
    evaluations = tuple(Evaluated(**e.model_dump()) for e in run.evaluations)
    post(
        Ready(
            parameters, dp.size(), mesh["tp"].size(), peak, measured, run.step, evaluations, power
        )
    )
    train(
        run,
        stream,
        [
            callbacks.Energy(meter),
            callbacks.Evaluation(),
            callbacks.Checkpoints(),
            callbacks.Continuations(tokenizer),
        ],
    )
    post(Ended(run.step, run.interrupted))


def _newest_checkpoint(run: Storage) -> str | None:
    """The folder to go on from, as rank 0 sees it, after it has removed what a crash left behind."""
    found: list[str | None] = [None]
    with together():
        if dist.get_rank() == 0:
            checkpoint.clean(run)
            found = [*checkpoint.committed(run)[-1:], None][:1]
    dist.broadcast_object_list(found)
    return found[0]


def _meter(config: Config, device: torch.device) -> Meter | Absent:
    """This rank's meter: its GPU, or on the first rank of a host without GPUs the host's RAPL."""
    uuids = []
    if device.type == "cuda":
        uuids = [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    elif ray.train.get_context().get_local_rank() != 0:
        return Absent("the first rank of this host measures for all")
    return choose(config.energy.source, uuids)
