"""The Ray Train side of an attempt: ranks on the nodes of its launch, started once."""

import pyarrow.fs as pafs
from fsspec.implementations.memory import MemoryFileSystem
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from panthalassa.train import flight_recorder
from panthalassa.train.scaling import OnceLaunched
from panthalassa.train.worker import Task, work


def build_trainer(task: Task, attempt: int) -> TorchTrainer:
    """A trainer that runs `work` on the ranks of an attempt, counted from 0, once that is launched.

    Its `fit` raises as soon as a rank fails, or when they can not be placed within Ray Train's start
    timeout.
    """
    run, cluster = task.config.run, task.config.cluster
    # Small decisions of the ranks travel over gloo, so that they never wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if cluster.gpus_per_worker else "gloo"
    return TorchTrainer(
        work,
        train_loop_config={"task": task, "attempt": attempt},
        torch_config=TorchConfig(backend=backend),
        scaling_config=OnceLaunched(task.board, attempt, cluster),
        run_config=RunConfig(
            name=run.name,
            worker_runtime_env={
                "env_vars": flight_recorder.environment(run.name) if cluster.gpus_per_worker else {}
            },
            # Ray Train wants a place for the checkpoints that it keeps. Ours are kept by the ranks.
            storage_path="/ray-train",
            storage_filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(
                max_failures=0,
                controller_failure_limit=0,  # type: ignore[call-arg]
            ),
        ),
    )
