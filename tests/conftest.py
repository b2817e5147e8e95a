"""What all tests share: one Ray on loopback, a small corpus, and credentials that open no cloud."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from s3 import Server, moto_server, s3_server, use_s3

if TYPE_CHECKING:
    from ranks import Ranks

    from panthalassa.config import Config
    from panthalassa.train.run import Outcome

PLATFORM = Path(__file__).parents[1] / "platform"

# Workers inherit these, so they are set before Ray starts.
os.environ.update(
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # ranks meet on loopback
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",
)


settings.register_profile("no deadline", deadline=None)  # the machine may be busy
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the Ray of the session; who starts one of its own says so."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """An embedded Ray of four nominal CPUs, shared by the whole session; its dashboard's address."""
    paths = [str(PLATFORM), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    import ray

    # Ray's sockets lie in this folder, and their paths may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    home, os.environ["HOME"] = os.environ.get("HOME", ""), folder  # a token there would matter
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=4,
        _node_ip_address="127.0.0.1",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        object_store_memory=200 << 20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield f"http://127.0.0.1:{port}"
    ray.shutdown()
    os.environ["HOME"] = home
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ranks() -> "Ranks":
    """`ranks(world, function, *arguments)` runs a function on real ranks; see tests/ranks.py."""
    from ranks import Ranks

    return Ranks()


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """make_disk("1m"): a file system of that size; skips where it can not be mounted."""
    disks = []

    def mount(size: str) -> Path:
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if mounted.returncode:
            pytest.skip(f"a small disk can not be mounted here: {mounted.stderr.strip()}")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server, with the bucket BUCKET."""
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of that server; returns its endpoint."""
    use_s3(monkeypatch, server.url)
    return server.url


@pytest.fixture(scope="module")
def _moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def moto(_moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of the other S3 server; returns its endpoint."""
    use_s3(monkeypatch, _moto)
    return _moto


SYLLABLES = ["ka", "te", "mo", "ri", "su", "na", "lo", "pe", "wi", "da"]


@pytest.fixture(scope="session")
def small_corpus(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred samples of 64 tokens in two invented languages."""
    return prepare_small_corpus(tmp_path_factory.mktemp("corpus"))


def prepare_small_corpus(root: Path) -> Path:
    """The corpus of `small_corpus`, in `root`."""
    from panthalassa.config import Corpus
    from panthalassa.corpus.prepare import prepare

    chance = random.Random(0)
    for language in ("aa", "bb"):
        (root / "texts" / language).mkdir(parents=True)
        words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(60)]
        for number in range(60):
            text = " ".join(chance.choices(words, k=chance.randint(40, 200)))
            (root / "texts" / language / f"{number}.txt").write_text(text)
    settings = Corpus(
        directory=str(root / "corpus"),
        sources=[str(root / "texts")],
        sequence_length=64,
        vocabulary_size=352,
        rows_per_group=8,
        clean=False,
    )
    prepare(settings, lambda line: None)
    return root / "corpus"


def tree(corpus: Path, directory: Path) -> dict[str, object]:
    """The configuration before its overrides."""
    return {
        "run": {"name": "small", "directory": str(directory / "runs")},
        "corpus": {"directory": str(corpus)},
        "model": {
            "vocabulary_size": 352,
            "hidden_size": 128,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "head_size": 32,
            "ffn_size": 256,
        },
        "train": {
            "steps": 24,
            "global_batch": 16,
            "micro_batch": 4,
            "sequence_length": 64,
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"warmup_steps": 2},
        },
        "checkpoint": {"every": 4},
        "evaluation": {"every": 12, "samples": 8, "prompts": ["kate"], "new_tokens": 4},
        "cluster": {"workers": 2, "cpus_per_worker": 0.5},
    }


@pytest.fixture(scope="session")
def configure(small_corpus: Path) -> "Callable[..., Config]":
    """configure(directory, "train.steps=5", …) -> the configuration of a small run there."""
    from panthalassa.config import Config
    from panthalassa.config_file import build

    def build_config(directory: Path, *overrides: str) -> "Config":
        return build(tree(small_corpus, directory), list(overrides), "test", Config)

    return build_config


@pytest.fixture(scope="session")
def undisturbed(
    configure: "Callable[..., Config]", tmp_path_factory: pytest.TempPathFactory
) -> "Outcome":
    """A whole run of two data-parallel ranks, the reference. To go on with it, take `finished`."""
    from panthalassa.train.run import pretrain

    return pretrain(configure(tmp_path_factory.mktemp("undisturbed")), lambda event: None)


@pytest.fixture(scope="session")
def undisturbed_long(
    configure: "Callable[..., Config]", tmp_path_factory: pytest.TempPathFactory
) -> "Outcome":
    """The run of nodes.LONG, whose curve every disturbed one of it must have."""
    from nodes import LONG

    from panthalassa.train.run import pretrain

    return pretrain(configure(tmp_path_factory.mktemp("long"), *LONG), lambda event: None)


@pytest.fixture
def finished(undisturbed: "Outcome", tmp_path: Path) -> Path:
    """`tmp_path`, in which the same run has ended."""
    shutil.copytree(undisturbed.config.run.directory, tmp_path / "runs")
    return tmp_path
