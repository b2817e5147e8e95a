"""What Ray Train runs on every rank: open the stream, build and fill the model, and loop.

The parts are in the order that makes the first step early: the stream starts first and warms up
while the model is built and the checkpoint is read.
"""

import ctypes
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from panthalassa.cluster import compute
from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.errors import PanthalassaError
from panthalassa.lease import Fence
from panthalassa.model.flops import peak_flops
from panthalassa.model.lora import add_adapters
from panthalassa.model.transformer import Transformer, count_parameters
from panthalassa.parallel.mesh import Standing, build_mesh, regroup
from panthalassa.parallel.parallelize import materialize, parallelize
from panthalassa.storage import Storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.curriculum import Curriculum, planned
from panthalassa.stream.ledger import Attempt, Ledger, newest_attempt
from panthalassa.stream.reader import Batch, ShardReader, open_stream
from panthalassa.train import callbacks, checkpoint
from panthalassa.train.agreement import together, total
from panthalassa.train.audit import keep_manifest
from panthalassa.train.base import identity, load_base
from panthalassa.train.board import Launch, Poster
from panthalassa.train.checkpoint import Commit
from panthalassa.train.checkpointing import Checkpoints
from panthalassa.train.claim import Claim, claim
from panthalassa.train.energy import Energy, EnergyEnd, count_standby
from panthalassa.train.events import Ended, Failed, Lost, Notice, Ready, Started
from panthalassa.train.loop import train
from panthalassa.train.node_watch import watching_node
from panthalassa.train.objective import Objective
from panthalassa.train.restore import resume
from panthalassa.train.rollback import Rollback
from panthalassa.train.step import build_optimizer, warm_up
from panthalassa.train.straggler import Straggler
from panthalassa.train.tracked import open_spool
from panthalassa.train.training_run import TrainingRun
from panthalassa.train.watchdog import Watchdog

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Task:
    """What the driver hands to every rank."""

    config: Config
    manifest: Manifest
    run: Storage
    """The run's folder."""
    corpus: Storage
    objective: Objective
    board: Any


def work(arguments: dict[str, Any]) -> None:
    """Run one rank of attempt `arguments["attempt"]` at the Task in `arguments["task"]`.

    Errors that a user can mend are posted and end the run. Any other, such as the loss of a rank that
    this one talks to, ends the attempt.
    """
    entered, task = time.time(), arguments["task"]
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(task.config.cluster.threads_per_worker)
    compute()
    _keep_freed_memory()
    task.board.sit.remote(ray.util.get_current_placement_group())
    launch = ray.get(task.board.launch.remote(arguments["attempt"]))
    try:
        claimed = claim(task.config, ray.train.torch.get_device())
        standing = _regroup(task.config)
    except PanthalassaError as error:
        Poster(task.board, False, arguments["attempt"]).fail(Failed(str(error)))
        return  # as all other ranks
    if not standing.trains:
        count_standby(claimed, lambda events: ray.get(task.board.post.remote(events)))
        return
    poster = Poster(task.board, dist.get_rank() == 0, arguments["attempt"])
    poster.post(Started("workers", entered - launch.at))
    if standing.spare:
        poster.post(Notice(_spare(standing.spare, task.config.parallel.tp_size)))
    try:
        _run(task, launch, poster, claimed)
    except PanthalassaError as error:
        if dist.get_rank() == 0 or not error.agreed:
            poster.fail(Failed(str(error)))
        if not error.agreed:
            raise  # the others wait for this rank: the attempt has to end
    except Exception as error:
        poster.fail(Lost(f"rank {dist.get_rank()}: {type(error).__name__}: {error}"))
        raise
    finally:
        poster.close()


def _regroup(config: Config) -> Standing:
    node = ray.get_runtime_context().get_node_id()
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return regroup(node, host, config.parallel.tp_size)


def _spare(ranks: int, tp_size: int) -> str:
    return (
        f"{ranks} rank{'s stand' if ranks > 1 else ' stands'} by: too few are left on their nodes for "
        f"a tensor-parallel group of {tp_size}"
    )


def _keep_freed_memory() -> None:
    """Have glibc reuse large buffers instead of returning them to the system at every step.

    Otherwise each activation and gathered weight is mapped, zeroed and faulted in again: 9 % of a step
    of the laptop model on one CPU. Elsewhere than on glibc, and on GPUs, nothing changes.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _run(task: Task, launch: Launch, poster: Poster, claimed: Claim) -> None:
    def part(name: str) -> AbstractContextManager[None]:
        return _timed(name, poster)

    def tell(text: str) -> None:
        poster.post(Notice(text))

    config = task.config
    device = ray.train.torch.get_device()
    energy = Energy(claimed)
    mesh = build_mesh(device.type, config.parallel.tp_size, config.parallel.replicas)
    reader = _reader(task)
    fence = Fence(task.run, launch.epoch)
    with part("data"):
        with together():
            if dist.get_rank() == 0:
                fence.check()
        found = resume(task.run, config.checkpoint.staging_directory, tell)
        commit = found.commit if found else None
        first_step = commit.step if commit else 0
        with together():
            curriculum = open_curriculum(config, task.manifest, task.run, commit)
        stream = _open_stream(task, launch, reader, curriculum, mesh, first_step)
        with together():
            ledger = _open_ledger(task, launch.epoch, curriculum, mesh, first_step)
        if ledger:
            poster.spool = open_spool(task.run, ledger.entry)
        rank = dist.get_rank()
        watchdog = Watchdog(config.guard, task.run, launch.epoch, rank, first_step, poster)
        with together():
            tokenizer = read_tokenizer(task.corpus, task.manifest)
    with part("model"):
        model, parameters, trained = _build_model(config, mesh, device)
    with part("peak"), together():
        peak = launch.peak_flops or peak_flops(config.cluster.peak_flops, device)
    run = TrainingRun(
        config=config,
        manifest=task.manifest,
        storage=task.run,
        reader=reader,
        mesh=mesh,
        device=device,
        model=model,
        optimizer=build_optimizer(model, config.train.optimizer),
        parameters=parameters,
        trained=trained,
        identity=identity(config, task.run),
        objective=task.objective,
        peak_flops=total(peak)[0],
        curriculum=curriculum,
        ledger=ledger,
        poster=poster,
        step=first_step,
        evaluations=list(commit.evaluations) if commit else [],
        passed_over=list(commit.passed_over) if commit else [],
        attempt=launch.epoch,
        permit=fence.check,
        beat=watchdog.beat,
    )
    with part("checkpoint"):
        if config.finetune and (config.finetune.lora or not found):
            load_base(task.run, run.state, config.checkpoint.staging_directory)
        if found:
            found.load(run.state)
    if config.parallel.compile:
        with part("compile"):
            warm_up(run.model, mesh, config.train, device)
    poster.post(_ready(run, claimed.power))
    checkpoints = Checkpoints(launch.between_failures)
    around = [
        watchdog,
        energy,
        Straggler(),
        callbacks.AdapterDropout(),
        Rollback(checkpoints),
        callbacks.Evaluation(),
        checkpoints,
        callbacks.Continuations(tokenizer),
        EnergyEnd(energy),
    ]
    with watching_node(task.board):
        train(run, stream, around)
    poster.post(Ended(run.step, run.interrupted))


def _reader(task: Task) -> ShardReader:
    settings = task.config.stream
    directory = Path(os.path.expanduser(settings.cache_directory))
    cache = ShardCache(directory, int(settings.cache_gigabytes * 1e9), task.corpus)
    return ShardReader(cache, task.manifest, settings.on_bad_shard == "quarantine")


@contextmanager
def _timed(name: str, poster: Poster) -> Iterator[None]:
    start = time.perf_counter()
    yield
    poster.post(Started(name, time.perf_counter() - start))


def open_curriculum(
    config: Config, manifest: Manifest, run: Storage, commit: Commit | None
) -> Curriculum:
    """The phases of a run that goes on from `commit`, or starts.

    Raises CheckpointError when the checkpoint does not fit, ConfigError for a mixture that the corpus
    does not have.
    """
    phases = planned(config, manifest.fingerprint)
    if commit:
        may_change = config.stream.on_change == "new_phase"
        phases = checkpoint.phases_from(run, commit, identity(config, run), phases, may_change)
    return Curriculum(phases, manifest)


def _open_stream(
    task: Task,
    launch: Launch,
    reader: ShardReader,
    curriculum: Curriculum,
    mesh: DeviceMesh,
    first_step: int,
) -> Iterator[Batch]:
    """The batches of the steps that are left; empty on ranks that do not read."""
    if mesh["tp"].get_local_rank() != 0:
        return iter(())
    pieces = list(curriculum.pieces(range(first_step, task.config.train.steps)))
    partition = mesh["dp"].size(), mesh["dp"].get_local_rank()
    return open_stream(reader, pieces, *partition, task.config.stream, launch.silent_nodes)


def _open_ledger(
    task: Task, number: int, curriculum: Curriculum, mesh: DeviceMesh, first_step: int
) -> Ledger | None:
    if dist.get_rank() != 0:
        return None
    keep_manifest(task.run, task.manifest)
    attempt = Attempt(
        attempt=number,
        before=newest_attempt(task.run, number),
        first_step=first_step,
        dp_size=mesh["dp"].size(),
        tp_size=mesh["tp"].size(),
        began=time.time(),
        phases=curriculum.phases,
    )
    return Ledger(task.run, attempt)


def _build_model(
    config: Config, mesh: DeviceMesh, device: torch.device
) -> tuple[Transformer, int, int]:
    """The sharded model with its initial weights, and over all ranks how many parameters it has and how
    many of them are trained."""
    lora = config.finetune and config.finetune.lora
    with torch.device("meta"):
        model = Transformer(config.model)
        if lora:
            add_adapters(model, lora, config.run.seed)
    parallelize(model, mesh, config.parallel)
    materialize(model, device, config.run.seed)
    return model, count_parameters(model), count_parameters(model, trained=True)


def _ready(run: TrainingRun, power: str) -> Ready:
    return Ready(
        parameters=run.parameters,
        trained=run.trained,
        dp_size=run.mesh["dp"].size(),
        tp_size=run.mesh["tp"].size(),
        peak_flops=run.peak_flops,
        peak_is_measured=run.config.cluster.peak_flops == "auto" and run.device.type == "cpu",
        first_step=run.step,
        evaluations=tuple(run.evaluations),
        power=power,
    )
