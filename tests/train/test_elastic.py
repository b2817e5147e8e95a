"""A run whose nodes die, join, are drained and taken away trains what an undisturbed one trains."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import LONG, Command, Nodes, cluster_of, elastic, tracked_losses, tracked_status

from panthalassa.config import Config
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run
from panthalassa.train.run import Outcome

Configure = Callable[..., Config]


def going_on(times: int) -> Callable[[str], bool]:
    """Whether a run has done a step of its attempt number `times` + 1."""
    return lambda text: len(re.findall(r"going on after step", text)) >= times


@pytest.fixture
def two_nodes() -> Iterator[tuple[Nodes, list[object]]]:
    with cluster_of(2, 2) as found:
        yield found


def test_nodes_die_join_and_are_drained_and_the_curve_stays(
    configure: Configure,
    two_nodes: tuple[Nodes, list[object]],
    undisturbed_long: Outcome,
    tmp_path: Path,
) -> None:
    """Four ranks on two nodes; one node dies; two go on; a node joins; four go on; one is drained;
    two go on until SIGTERM; the same command ends the run."""
    nodes, (_, second) = two_nodes
    expected = {step.step: step.loss for step in undisturbed_long.history.steps}
    config = configure(tmp_path, *LONG, *elastic(nodes.address), "checkpoint.every=10")
    first = Command(config, tmp_path, "first")
    ledger = tmp_path / "runs" / "small" / "ledger" / "000001.jsonl"
    try:
        first.wait_for(lambda text: "step-00000010" in text, "a checkpoint of four ranks")
        first.wait_for(lambda text: ledger.read_bytes().count(b"\n") > 12, "two steps behind it")
        nodes.kill(second)
        first.wait_for(going_on(1), "an attempt of two ranks")
        third = nodes.add(2)
        first.wait_for(going_on(2), "an attempt of four ranks")
        nodes.drain(third)
        first.wait_for(going_on(3), "an attempt on one node")
        first.signal(signal.SIGTERM)
        text = first.wait()
    finally:
        first.close()
    assert "stopped as asked; the same command goes on" in text
    again = Command(config, tmp_path, "again")
    try:
        text = again.wait()
    finally:
        again.close()
    assert f"complete, after step {len(expected)}" in text
    report = audit_run(open_storage(str(tmp_path / "runs" / "small")))
    assert report.problems == []
    assert [account.attempt.dp_size for account in report.attempts] == [4, 2, 4, 2, 2]
    assert [back.attempt for back in report.rolled_back] == [1], "only the death cost steps"
    assert tracked_losses(tmp_path / "runs" / "mlflow.db") == pytest.approx(expected, abs=1e-4)


def test_a_run_waits_for_nodes_says_what_is_missing_and_can_be_stopped_meanwhile(
    configure: Configure, two_nodes: tuple[Nodes, list[object]], tmp_path: Path
) -> None:
    nodes, _ = two_nodes
    more = "cluster.workers=6", "cluster.min_workers=6"
    config = configure(tmp_path, *elastic(nodes.address), *more)
    waits = "waiting for nodes: 4 of at least 6 ranks have a place"
    command = Command(config, tmp_path)
    try:
        command.wait_for(lambda text: waits in text, "a notice")
        command.signal(signal.SIGTERM)
        assert "small: stopped as asked; the same command goes on" in command.wait()
    finally:
        command.close()
    assert tracked_status(tmp_path / "runs" / "mlflow.db") == "KILLED"
    command = Command(config, tmp_path)
    try:
        command.wait_for(lambda text: waits in text, "a notice")
        nodes.add(2)
        assert "complete, after step 24" in command.wait()
    finally:
        command.close()
    assert tracked_status(tmp_path / "runs" / "mlflow.db") == "FINISHED"


@pytest.mark.parametrize(
    ("places", "settings", "reason"),
    [
        (
            2,
            ("cluster.min_workers=4", "cluster.wait_seconds=4"),
            "2 of at least 4 ranks have a place",
        ),
        (1, ("parallel.tp_size=2",), "no node of this cluster holds more than 1"),
    ],
)
def test_what_the_cluster_can_not_give_is_said(
    configure: Configure, tmp_path: Path, places: int, settings: tuple[str, ...], reason: str
) -> None:
    with cluster_of(places) as (nodes, _):
        command = Command(configure(tmp_path, *elastic(nodes.address), *settings), tmp_path)
        try:
            text = command.wait()
        finally:
            command.close()
    assert command.process.returncode == 1
    assert re.search(f"panthalassa: .*{reason}", text)


def test_stop_reaches_a_run_through_its_folder(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path, "train.steps=5000")
    command = Command(config, tmp_path)
    run = str(tmp_path / "runs" / "small")
    try:
        command.wait_for(lambda text: "checkpoint " in text, "a checkpoint")
        stop = [sys.executable, "-m", "panthalassa.cli", "stop", run]
        done = subprocess.run(stop, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "stopped as asked; the same command goes on" in command.wait()
    finally:
        command.close()
    refused = subprocess.run(stop, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "nothing trains" in refused.stderr
