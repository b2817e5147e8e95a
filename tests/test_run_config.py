"""A run's folder holds its configuration; a later command says what it changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ladders import ladder
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.errors import PanthalassaError
from panthalassa.run_config import CONFIG, keep, kept
from panthalassa.storage import open_storage

Configure = Callable[..., Config]


def test_what_a_later_command_changes_is_told_with_both_values(
    configure: Configure, tmp_path: Path
) -> None:
    run = open_storage(str(tmp_path / "run"))
    first = configure(tmp_path, "train.optimizer.learning_rate=0.001")
    assert keep(first, run) == []
    assert keep(first, run) == []
    assert kept(run) == first
    second = configure(tmp_path, "train.optimizer.learning_rate=0.1", "train.steps=30")
    assert keep(second, run) == [
        f"train.steps {first.train.steps} -> 30",
        "train.optimizer.learning_rate 0.001 -> 0.1",
    ]
    assert kept(run) == second


def test_credentials_are_not_kept(configure: Configure, tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "run"))
    keep(configure(tmp_path, "tracking.uri=https://me:secret@host"), run)
    assert b"secret" not in run.read(CONFIG)


@pytest.mark.parametrize("content", [b"- a list", b"{", b"\x80"])
def test_what_is_no_configuration_is_named_when_read_and_mended_when_written(
    configure: Configure, tmp_path: Path, content: bytes
) -> None:
    run = open_storage(str(tmp_path / "run"))
    run.write(CONFIG, content)
    with pytest.raises(PanthalassaError, match=CONFIG):
        kept(run)
    config = configure(tmp_path)
    assert keep(config, run) == []
    assert kept(run) == config


def test_a_sweep_is_not_taken_for_a_run(tmp_path: Path) -> None:
    """Its folder is refused where one of a run is wanted, with what to name instead."""
    sweep = open_storage(str(tmp_path / "many"))
    ladder(sweep)
    before = sorted(tmp_path.rglob("*"))
    one, two = str(tmp_path / "many"), str(tmp_path / "many/ladder-00000")
    for command in (
        ["report", one], ["report", two, "--compare", one], ["audit", one], ["goodput", one],
        ["energy", "show", one], ["energy", "compare", one, two], ["energy", "tune", one],
    ):  # fmt: skip
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 1, told.output
        assert f"{one} is a sweep: name the run of a trial, such as" in told.stderr
        assert f"{one}/sweep.html" in told.stderr
    assert sorted(tmp_path.rglob("*")) == before
