"""The Ray Train side of a run: how many workers, with what, and what to do when they die."""

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from panthalassa.storage import open_storage
from panthalassa.train.worker import Task, work


def build_trainer(task: Task) -> TorchTrainer:
    """A trainer whose ranks run `work`; they restart from the newest checkpoint when they fail."""
    run, cluster = task.config.run, task.config.cluster
    runs = open_storage(run.directory)
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
            storage_path=runs.root,
            storage_filesystem=runs.filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
