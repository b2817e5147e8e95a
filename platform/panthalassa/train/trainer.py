"""The Ray Train side of a run: how many workers, with what, and what to do when they die."""

import pyarrow.fs as pafs
from fsspec.implementations.memory import MemoryFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from panthalassa.train.worker import Task, work


def build_trainer(task: Task) -> TorchTrainer:
    """A trainer whose ranks run `work`; they restart from the newest checkpoint when they fail."""
    run, cluster = task.config.run, task.config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    # Small decisions of the ranks travel over gloo, so that they never wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if cluster.gpus_per_worker else "gloo"
    return TorchTrainer(
        work,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=run.name,
            # Ray Train wants a place for the checkpoints that it keeps. Ours are kept by the ranks.
            storage_path="/ray-train",
            storage_filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
