"""A run on a corpus in object storage, behind a network that fails, and killed again and again."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import worker_pids
from s3 import BUCKET, FaultyProxy, s3_server, use_s3

from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run
from panthalassa.train.events import Event, Step
from panthalassa.train.run import Outcome, pretrain

Configure = Callable[..., Config]
FAULTS = ("503", "reset", "cut", "flip", "stall")


def test_two_then_one_then_three_ranks_over_a_bad_network_train_what_one_good_run_trains(
    configure: Configure,
    small_corpus: Path,
    undisturbed: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first two attempts are killed between checkpoints. The curve is the undisturbed one, and
    the audit shows each sample once."""
    losses: dict[int, float] = {}

    def note(event: Event) -> None:
        if isinstance(event, Step):
            losses[event.step] = event.loss

    with (
        s3_server(tmp_path / "buckets") as server,
        FaultyProxy(server.url, rate=0.01, kinds=FAULTS, stall=6, seed=3) as proxy,
    ):
        shutil.copytree(small_corpus, server.folder / BUCKET / "corpus")
        use_s3(monkeypatch, proxy.url)
        for workers, until in ((2, 10), (1, 14), (3, None)):
            config = configure(
                tmp_path,
                f"run.directory=s3://{BUCKET}/runs",
                f"corpus.directory=s3://{BUCKET}/corpus",
                f"stream.cache_directory={tmp_path}/cache",
                f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
                f"cluster.workers={workers}",
                "cluster.max_failures=0",
            )
            if until is None:
                pretrain(config, note)
                break

            def kill(event: Event, until: int = until) -> None:
                note(event)
                if isinstance(event, Step) and event.step >= until:
                    for pid in worker_pids():
                        os.kill(pid, signal.SIGKILL)

            with pytest.raises(PanthalassaError, match="the ranks failed more often"):
                pretrain(config, kill)
        report = audit_run(open_storage(f"s3://{BUCKET}/runs/small"))
    assert report.problems == []
    assert report.samples == 24 * 16
    assert [account.attempt.dp_size for account in report.attempts] == [2, 1, 3]
    assert proxy.faults, "the network was good"
    whole = {step.step: step.loss for step in undisturbed.history.steps}
    assert losses == pytest.approx(whole, abs=1e-4)
