"""Functions on real ranks: processes that share a gloo process group on loopback.

`ranks(4, function, *arguments)` runs `function(*arguments)` on four ranks and returns their four
results. The ranks of a call are fresh, and cheap all the same: they are forked from a server that has
imported torch and the platform once. So nothing of one call (caches, groups, random state) is seen by
another, and a rank that hangs or dies takes nothing with it.

Below that, a run in small: the parts that tests of the mesh, of the step and of checkpoints share.
"""

import faulthandler
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray import cloudpickle
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.model.lora import adapted, add_adapters
from panthalassa.model.transformer import (
    IGNORED,
    Transformer,
    initial_weight,
    parameters_by_name,
)
from panthalassa.parallel.mesh import build_mesh
from panthalassa.parallel.parallelize import materialize, parallelize
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import PADDING, Samples
from panthalassa.train.agreement import total
from panthalassa.train.guard import NormGuard
from panthalassa.train.micro_batch import MicroBatch, micro_batches
from panthalassa.train.objective import NextToken, Objective
from panthalassa.train.schedule import learning_rate
from panthalassa.train.step import build_optimizer, train_step

GRACE = 5
"""Seconds that the other ranks have to end when one has failed."""


class RankError(Exception):
    """A rank raised, died or hung; the text holds its traceback."""


class Ranks:
    """The server that ranks are forked from, and the calls to it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "torch._dynamo"])

    def __call__(
        self, world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 150
    ) -> list[Any]:
        """The results of `function(*arguments)` on ranks 0 to `world - 1`.

        Functions of test modules and their arguments travel by value. Raises RankError when a rank
        fails, or has not ended after `timeout` seconds; no process is left then either.
        """
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        job = cloudpickle.dumps((function, arguments))
        cloudpickle.unregister_pickle_by_value(module)
        processes, connections = [], []
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            try:
                with _import_path_in_environment():
                    for rank in range(world):
                        mine, theirs = self._context.Pipe(duplex=False)
                        process = self._context.Process(
                            target=_rank, args=(rank, world, f"{folder}/store", job, theirs)
                        )
                        process.start()
                        theirs.close()
                        processes.append(process)
                        connections.append(mine)
                return _results(processes, connections, timeout)
            finally:
                for process in processes:
                    process.join(GRACE if sys.exc_info()[0] is None else 0)
                    if process.is_alive():
                        process.kill()
                        process.join()
                for connection in connections:
                    connection.close()


@contextmanager
def _import_path_in_environment() -> Iterator[None]:
    """The fork server starts with the first call, and imports by what it finds in PYTHONPATH."""
    before = {key: os.environ.get(key) for key in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS="1")
    yield
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})


def _results(
    processes: list[BaseProcess], connections: list[Connection], timeout: float
) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[str] = []
    until = time.monotonic() + timeout
    while len(results) + len(failures) < len(connections):
        waiting = [c for i, c in enumerate(connections) if i not in results and not c.closed]
        ready = wait(waiting, max(0.0, until - time.monotonic()))
        if not ready:
            missing = [i for i, c in enumerate(connections) if c in waiting]
            failures.append(f"ranks {missing} have not ended in time")
            break
        for connection in ready:
            rank = connections.index(connection)
            try:
                succeeded, value = cloudpickle.loads(connection.recv_bytes())
            except EOFError:
                processes[rank].join(GRACE)
                code = processes[rank].exitcode
                succeeded, value = False, f"rank {rank} died with exit code {code}"
            if succeeded:
                results[rank] = value
            else:
                failures.append(value)
                connection.close()
                until = min(until, time.monotonic() + GRACE)
    if failures:
        raise RankError("\n".join(failures))
    return [results[rank] for rank in range(len(connections))]


def _rank(rank: int, world: int, store: str, job: bytes, connection: Connection) -> None:
    faulthandler.enable()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=120),
        )
        dist.barrier()  # else a rank that is done may leave while others still connect to it
        function, arguments = cloudpickle.loads(job)
        answer = cloudpickle.dumps((True, function(*arguments)))
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        answer = cloudpickle.dumps((False, f"rank {rank}: {traceback.format_exc()}"))
    connection.send_bytes(answer)


SIZES = {
    "vocabulary_size": 256,
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 8,
    "ffn_size": 48,
}


def tiny(*overrides: str) -> Config:
    """A run of 20 steps of 4 samples of 32 tokens, on a model of two small layers."""
    data: dict[str, Any] = {
        "run": {"name": "tiny", "seed": 5},
        "corpus": {"directory": "nowhere"},
        "model": dict(SIZES),
        "parallel": {},
        "cluster": {"workers": 12},
        "train": {
            "steps": 20,
            "global_batch": 4,
            "micro_batch": 4,
            "sequence_length": 32,
            "optimizer": {"learning_rate": 0.01, "clip_norm": 0.5},
            "schedule": {"warmup_steps": 3},
        },
    }
    return build(data, list(overrides), "tiny", Config)


def packed(step: int, config: Config) -> Samples:
    """The global batch of a step: rows of a few documents, with padding behind them.

    The rows hold very different numbers of tokens, so that a mean over ranks or micro-batches
    is not the mean over tokens.
    """
    train = config.train
    draw = np.random.default_rng(step)
    tokens = np.zeros((train.global_batch, train.sequence_length), np.int32)
    documents = np.full_like(tokens, PADDING)
    for row in range(train.global_batch):
        full = train.sequence_length if row % 4 == 0 else int(draw.integers(2, 28))
        ends = [*sorted(draw.integers(1, full, size=draw.integers(0, 4)).tolist()), full]
        documents[row, :full] = np.searchsorted(ends, np.arange(full), side="right")
        # A skewed draw: there is something to learn, and the loss falls.
        tokens[row, :full] = config.model.vocabulary_size * draw.random(full) ** 3
    return Samples.of_text(tokens, documents)


def unsharded(config: Config) -> Transformer:
    """The model with its initial weights, whole, in this process, without `parallel`."""
    model = Transformer(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = initial_weight(
                name, parameter.shape, config.model, config.run.seed, torch.device("cpu")
            )
            parameter.copy_(weight)
    return model


def mean_loss(model: Transformer, samples: Samples) -> torch.Tensor:
    """Written as in a textbook: the mean cross-entropy of the next token of the same document."""
    tokens = torch.from_numpy(samples.tokens).long()
    documents = torch.from_numpy(samples.documents).long()
    labels = torch.full_like(tokens, IGNORED)
    for row, column in np.ndindex(tokens.shape[0], tokens.shape[1] - 1):
        here, after = documents[row, column], documents[row, column + 1]
        if here == after != PADDING:
            labels[row, column] = tokens[row, column + 1]
    logits = model(tokens, documents)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def unsharded_gradients(config: Config, step: int) -> dict[str, torch.Tensor]:
    """What `TinyRun.gradients` must find."""
    model = unsharded(config)
    mean_loss(model, packed(step, config)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


class TinyRun:
    """A sharded model with its optimizer on this rank, and the batches that it takes."""

    def __init__(self, config: Config, objective: Objective | None = None) -> None:
        self.config, self.objective = config, objective or NextToken()
        self.mesh: DeviceMesh = build_mesh("cpu", config.parallel.tp_size, config.parallel.replicas)
        with torch.device("meta"):
            self.model = Transformer(config.model)
            if config.finetune and config.finetune.lora:
                add_adapters(self.model, config.finetune.lora, config.run.seed)
        parallelize(self.model, self.mesh, config.parallel)
        materialize(self.model, torch.device("cpu"), config.run.seed)
        self.optimizer: Any = build_optimizer(self.model, config.train.optimizer)
        self.guard = NormGuard(torch.device("cpu"))

    @property
    def reads(self) -> bool:
        return self.mesh["tp"].get_local_rank() == 0

    def samples(self, step: int) -> Samples:
        every, own = packed(step, self.config), self.partition
        part = slice(own.start, own.start + own.samples)
        return Samples.of_text(every.tokens[part], every.documents[part])

    @property
    def partition(self) -> Partition:
        dp = self.mesh["dp"]
        return Partition(self.config.train.global_batch, dp.size(), dp.get_local_rank())

    def batches(self, step: int) -> list[MicroBatch]:
        size = self.config.train.micro_batch
        count = self.partition.micro_batches(size)
        vision = self.config.model.vision
        return micro_batches(self.samples(step), count, size, torch.device("cpu"), vision)

    def step(self, step: int) -> tuple[float, float]:
        """Do step number `step`; the mean loss of the global batch, and the gradient's norm."""
        train = self.config.train
        batches = self.batches(step)
        (units,) = total(self.objective.units(self.samples(step)) if self.reads else 0)
        for layer in adapted(self.model):
            layer.dropout.step = step
        rate = learning_rate(step, train.steps, train.optimizer.learning_rate, train.schedule)
        loss, norm = train_step(
            self.model,
            self.optimizer,
            batches,
            self.mesh,
            train,
            self.objective,
            int(units),
            rate,
            self.config.parallel.keep_gathered,
            self.guard,
            self.config.guard,
        )
        (loss_sum,) = total(loss.item() if self.reads else 0.0)
        return loss_sum / units, norm.item()

    def gradients(self, step: int) -> dict[str, torch.Tensor]:
        """The whole gradients of a step, not clipped, by parameter; no weight changes."""
        recorder = _Recorder(self)
        before = self.config, self.optimizer
        no_clipping = ["train.optimizer.clip_norm=1.0e9"]
        self.config = build(self.config.model_dump(), no_clipping, "tiny", Config)
        self.optimizer = recorder
        self.step(step)
        self.config, self.optimizer = before
        return recorder.found


def plain_curve(
    model: torch.nn.Module, loss_of: Callable[[int], torch.Tensor], config: Config, steps: int
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, by plain torch in one process."""
    train, curve = config.train, []
    optimizer = build_optimizer(model, train.optimizer)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, train.steps, train.optimizer.learning_rate, train.schedule
            )
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    return curve


class _Recorder:
    """Stands in for the optimizer: keeps the gradients that it is given."""

    param_groups: tuple[Any, ...] = ()

    def __init__(self, run: TinyRun) -> None:
        self.model = run.model
        self.found: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        for name, parameter in parameters_by_name(self.model):
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None, f"{name} has no gradient"
            self.found[name] = whole(parameter.grad).clone()

    def zero_grad(self) -> None:
        self.model.zero_grad()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
