"""Seeded schedules of faults against a run on several raylets: nothing is lost, nothing is left.

Even seeds keep the run on a small disk, odd ones in object storage. One short schedule runs with all
tests; `make chaos SEEDS=5` runs longer ones (CHAOS_SEEDS and CHAOS_FAULTS in the environment).
"""

import os
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos.stage import ON_DISK, ON_S3, Stage
from nodes import FAULTS, LONG, cluster_of, elastic, tracked_losses
from processes import MARK, OF_ACTORS, left_over
from s3 import BUCKET, free_port, use_s3

from panthalassa.config import Config
from panthalassa.tracking.spool import series
from panthalassa.train.audit import audit_run
from panthalassa.train.goodput import account
from panthalassa.train.goodput_ledger import read
from panthalassa.train.run import Outcome

Configure = Callable[..., Config]

SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "1")))


@contextmanager
def stage_for(
    seed: int, configure: Configure, make_disk: Callable[[str], Path], folder: Path
) -> Iterator[Stage]:
    """A run of its own on two nodes, with its state on a disk or in object storage."""
    in_storage = seed % 2 == 1
    place = folder / "buckets" if in_storage else make_disk("120m")
    directory = f"s3://{BUCKET}/runs" if in_storage else f"{place}/runs"
    with cluster_of(2, 2) as (nodes, joined):
        config = configure(
            folder,
            *LONG,
            *elastic(nodes.address),
            "checkpoint.every=5",
            f"run.directory={directory}",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            "cluster.max_failures=5",
            "guard.step_seconds=45",
        )
        stage = Stage(config, folder, nodes, joined, place)
        try:
            if in_storage:
                stage.serve()
            stage.submit()
            yield stage
        finally:
            stage.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_of_faults_changes_the_run(
    seed: int,
    configure: Configure,
    undisturbed_long: Outcome,
    make_disk: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {step.step: step.loss for step in undisturbed_long.history.steps}
    mark, temporary = uuid.uuid4().hex, tmp_path / "temporary"
    (temporary / "ray").mkdir(parents=True)  # Ray leaves the address of its newest cluster there
    use_s3(monkeypatch, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("TMPDIR", str(temporary))
    faults = random.Random(seed).sample(ON_S3 if seed % 2 else ON_DISK, FAULTS)
    print(f"seed {seed}: {', '.join(faults)}")
    with stage_for(seed, configure, make_disk, tmp_path) as stage:
        stage.recovered("")
        for fault in faults:
            stage.suffer(fault)
        printed = stage.finish()
        assert f"complete, after step {len(expected)}" in printed
        assert audit_run(stage.storage).problems == []
        assert left_over(mark, "ray::RayTrainWorker") == []
        assert left_over(mark, "ray::TrainController", OF_ACTORS) == []
        goodput = account(read(stage.storage))
        spooled = {step: loss for step, _, loss in series(stage.storage)["loss"]}
    assert goodput.commands == len(stage.logs)
    assert goodput.parts["other"] <= 0.01 * goodput.seconds
    assert tracked_losses(tmp_path / "mlflow.db") == pytest.approx(expected, abs=1e-4)
    assert spooled == pytest.approx(expected, abs=1e-4)
    assert left_over(mark) == []
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
