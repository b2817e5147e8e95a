"""What people can get wrong at the command line: one clear message, exit code 1, nothing lost."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.corpus.manifest import MANIFEST
from panthalassa.run_config import keep
from panthalassa.storage import open_storage
from panthalassa.stream.ledger import Attempt, Consumed, Ledger
from panthalassa.train.check import check
from panthalassa.train.checkpoint import COMMIT, committed, folder

Run = Callable[..., Result]


@pytest.fixture
def train(configure: Callable[..., Config], tmp_path: Path) -> Run:
    """`panthalassa train` on a small configuration with the given overrides."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(configure(tmp_path).model_dump(mode="json")))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["train", str(path), *arguments])

    return run


def message(result: Result) -> str:
    """The one message of a refused command."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("panthalassa: ")
    return " ".join(lines)


@pytest.mark.parametrize(
    "place", ["s3://AKIA:hunter2secret@ocean/raw", "s3://ocean/raw?secret_key=hunter2secret"]
)
def test_credentials_in_a_source_are_refused_and_never_printed(place: str) -> None:
    result = CliRunner().invoke(app, ["prepare", place])
    assert "credentials do not belong in the URI" in message(result)
    assert "hunter2secret" not in result.output


def test_a_source_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(app, ["prepare", "texts/mnie"])
    assert "texts/mnie: there is no such folder or configuration" in message(result)


def test_a_wrong_key_is_refused_with_the_nearest_right_one(train: Run) -> None:
    assert "train.stpes=5: there is no such key; did you mean train.steps?" in message(
        train("train.stpes=5")
    )


def test_a_missing_corpus_is_named_with_the_command_that_makes_one(
    train: Run, tmp_path: Path
) -> None:
    text = message(train(f"corpus.directory={tmp_path}/nothing"))
    assert f"no corpus at {tmp_path}/nothing" in text
    assert "panthalassa prepare" in text


def test_a_manifest_that_is_none_is_named(train: Run, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text('{"format": 1}')
    text = message(train(f"corpus.directory={tmp_path}/broken"))
    assert f"{tmp_path}/broken/{MANIFEST} is not a corpus manifest" in text


def test_an_unreadable_manifest_is_named(train: Run, tmp_path: Path) -> None:
    (tmp_path / "broken" / MANIFEST).mkdir(parents=True)
    assert f"{tmp_path}/broken/{MANIFEST} can not be read" in message(
        train(f"corpus.directory={tmp_path}/broken")
    )


def test_a_sequence_longer_than_the_corpuss_is_refused(train: Run) -> None:
    text = message(train("train.sequence_length=128"))
    assert "train.sequence_length=128" in text
    assert "64 tokens" in text


def test_a_vocabulary_smaller_than_the_corpuss_is_refused(train: Run) -> None:
    assert "model.vocabulary_size=300" in message(train("model.vocabulary_size=300"))


def test_a_port_in_use_is_named_with_its_key(train: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = message(train(f"cluster.dashboard_port={port}"))
    assert f"port {port} (key cluster.dashboard_port) can not be used" in text


def test_an_unknown_gpu_is_refused_because_its_mfu_would_be_a_guess(train: Run) -> None:
    text = message(train("cluster.peak_flops=NVIDIA H900"))
    assert "unknown GPU 'NVIDIA H900'" in text
    assert "cluster.peak_flops" in text


def test_a_checkpoint_of_another_model_is_refused_and_kept(
    train: Run, configure: Callable[..., Config], finished: Path
) -> None:
    config = configure(finished)
    run = open_storage(config.run.directory).below("small")
    before = run.read(f"{folder(24)}/{COMMIT}")
    text = message(train("model.layers=2"))
    assert f"checkpoint {run.uri}/{folder(24)} belongs to another run" in text
    assert "model.layers is 3 there, 2 here" in text
    assert run.read(f"{folder(24)}/{COMMIT}") == before
    assert "is further already" in message(train("train.steps=2", "train.schedule.warmup_steps=1"))
    assert check(config), "the configuration that made it is still welcome"


def test_another_model_is_refused_before_the_first_checkpoint_too(
    train: Run, configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = open_storage(str(tmp_path / "runs")).below("small")
    keep(configure(tmp_path), run)
    ledger = Ledger(
        run, Attempt(attempt=1, first_step=0, dp_size=1, tp_size=1, began=0.0, phases=[])
    )
    ledger.record(Consumed(step=0, samples=16, digest="0" * 32))
    text = message(train("model.layers=2"))
    assert f"{run.uri} belongs to another run, which has no checkpoint yet" in text
    assert "model.layers is 3 there, 2 here" in text
    assert "layers: 3" in run.read("config.yaml").decode()


def test_gpus_that_are_not_there_are_refused_before_anybody_waits(train: Run) -> None:
    text = message(train("cluster.gpus_per_worker=1"))
    assert "want 2 GPUs; this machine has 0" in text


def test_a_run_directory_that_is_no_folder_is_named(train: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"run.directory={tmp_path}/file" in message(train(f"run.directory={tmp_path}/file"))


def test_debug_shows_the_traceback(train: Run, tmp_path: Path) -> None:
    result = train("--debug", f"corpus.directory={tmp_path}/nothing")
    assert result.exit_code == 1
    assert result.exc_info is not None
    assert result.exc_info[2].tb_next is not None


def test_a_corrupt_shard_ends_the_run_with_its_name(
    train: Run, small_corpus: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(small_corpus, copy)
    for shard in (copy / "train").rglob("*.parquet"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    text = message(train(f"corpus.directory={copy}"))
    assert f"shard {copy}/train/" in text
    assert "is corrupt: SHA-256" in text
    assert "prepare the corpus anew" in text


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    """A file system of 20 MB: room for one checkpoint of the small run, not for three."""
    return make_disk("20m")


def test_a_full_disk_ends_the_run_and_spares_the_older_checkpoint(
    train: Run, configure: Callable[..., Config], small_disk: Path
) -> None:
    arguments = [f"run.directory={small_disk}", "tracking.uri=sqlite:////dev/null"]
    run = open_storage(str(small_disk)).below("small")
    text = message(train(*arguments, "checkpoint.every=4", "checkpoint.keep=10"))
    assert "could not be written" in text
    assert "MB free on its disk" in text
    assert "Make room" in text
    saved = committed(run)
    assert saved, "the first checkpoint fitted"
    assert [name for name in run.folders() if name.startswith("step-")] == saved
    run.delete(saved[0])
    further = int(saved[-1][5:]) + 1
    again = train(*arguments, "checkpoint.every=1000", f"train.steps={further}")
    assert again.exit_code == 0, again.output
    assert f"going on after step {int(saved[-1][5:])}" in again.output


RAYLET = """
from panthalassa.cli import _run

def command(console):
    from ray._private.worker import print_to_stdstream

    for line in ("8 PYTHON worker processes have been started on node: a", "a worker was killed"):
        print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, False)

_run(command, debug=False)
"""


def test_ray_says_nothing_of_the_number_of_its_processes_between_a_commands_lines() -> None:
    """Which are meant to be many. What else it has to say is shown."""
    told = subprocess.run(
        [sys.executable, "-c", RAYLET], capture_output=True, text=True, timeout=120
    )
    assert "a worker was killed" in told.stdout, told.stderr
    assert "worker processes" not in told.stdout
