"""A run whose nodes die, join, are drained and taken away trains what an undisturbed one trains."""

import re
import signal
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


@pytest.fixture(scope="module")
def one_place() -> Iterator[Nodes]:
    with cluster_of(1) as (nodes, _):
        yield nodes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("cluster.wait_seconds=4",), "1 of at least 2 ranks have a place"),
        (("parallel.tp_size=2",), "no node of this cluster holds more than 1"),
    ],
)
def test_what_the_cluster_can_not_give_is_said(
    configure: Configure, one_place: Nodes, tmp_path: Path, settings: tuple[str, ...], reason: str
) -> None:
    command = Command(configure(tmp_path, *elastic(one_place.address), *settings), tmp_path)
    try:
        text = command.wait()
    finally:
        command.close()
    assert command.process.returncode == 1
    assert re.search(f"panthalassa: .*{reason}", text)


def test_a_run_waits_for_nodes_says_what_is_missing_and_can_be_stopped_meanwhile(
    configure: Configure, one_place: Nodes, tmp_path: Path
) -> None:
    config = configure(tmp_path, *elastic(one_place.address), "cluster.workers=2")
    waits = "waiting for nodes: 1 of at least 2 ranks have a place"
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
        one_place.add(1)
        assert "complete, after step 24" in command.wait()
    finally:
        command.close()
    assert tracked_status(tmp_path / "runs" / "mlflow.db") == "FINISHED"
