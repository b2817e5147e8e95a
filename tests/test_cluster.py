"""The embedded Ray: what is started is ended again, whatever state it is in."""

import os
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from nodes import cluster_of

from panthalassa.config import Config

ONE_RANK_FAILS_ALONE = """
    import sys, time
    from torch import distributed as dist
    from panthalassa.config_file import load
    from panthalassa.errors import PanthalassaError
    from panthalassa.train import run, trainer

    def main():
        def work(arguments):
            from panthalassa.train import worker

            def alone(*arguments):
                if dist.get_rank() == 0:
                    time.sleep(600)  # as in a collective that never ends
                raise PanthalassaError("rank 1 can not go on")

            worker._run = alone
            worker.work(arguments)

        trainer.work = work
        try:
            run.pretrain(load(sys.argv[1]), lambda event: None)
        except PanthalassaError as error:
            print(error)

    main()
"""

SIGTERM_TO_ALL_OF_IT = """
    import os
    import signal
    import sys
    import time

    import ray
    from panthalassa.cluster import connected
    from panthalassa.config_file import load

    with connected(load(sys.argv[1]).cluster):
        signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(1)
        print(ray.get(ray.remote(lambda: "Ray is there").remote()))
"""

WORKER_HANGS_AT_EXIT = """
    import sys
    import ray
    from panthalassa.cluster import connected
    from panthalassa.config_file import load

    @ray.remote
    class HangsAtExit:
        def leave(self):
            import atexit, time

            atexit.register(time.sleep, 600)
            ray.actor.exit_actor()

    with connected(load(sys.argv[1]).cluster):
        try:
            ray.get(HangsAtExit.remote().leave.remote())
        except ray.exceptions.RayActorError:
            print("left")
"""


CONTROLLER_HANGS_AT_EXIT = """
    import sys
    from pathlib import Path
    from panthalassa.config_file import load
    from panthalassa.train.run import pretrain
    from panthalassa.train.scaling import OnceLaunched

    def main():
        told = Path(sys.argv[1]).parent / "controller"

        def hanging(board, attempt, cluster):
            import atexit, os, time
            from panthalassa.train.scaling import _when_launched

            if attempt == 0 and not told.exists():
                atexit.register(time.sleep, 600)
                told.write_text(str(os.getpid()))
            return _when_launched(board, attempt, cluster)

        OnceLaunched.__reduce__ = lambda scaling: (hanging, scaling._arguments)
        pretrain(load(sys.argv[1]), lambda event: None)

    main()
"""

BESIDE_ANOTHER = """
    import sys
    import ray
    from panthalassa.cluster import connected
    from panthalassa.config_file import load
    from ray.util.state import get_actor

    @ray.remote
    class Asks:
        def state(self, actor):
            return get_actor(actor).state

    with connected(load(sys.argv[1]).cluster, dashboard=True):
        asks = Asks.remote()
        print(ray.get(asks.state.remote(asks._actor_id.hex())))
"""

NOBODY_LISTENS = """
    import sys
    from panthalassa.cluster import connected
    from panthalassa.config_file import load
    from panthalassa.errors import PanthalassaError

    try:
        with connected(load(sys.argv[1], ["cluster.address=127.0.0.1:1"]).cluster):
            pass
    except PanthalassaError as error:
        print(error)
"""


def run(script: str, config: Config, folder: Path) -> tuple[str, list[psutil.Process]]:
    """What the script prints, and the processes that it leaves."""
    path, mark = folder / "small.yaml", uuid.uuid4().hex
    path.write_text(config.dump())
    environment = {**os.environ, "PANTHALASSA_TEST": mark, "HOME": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        process_group=0,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PANTHALASSA_TEST") == mark:
                left.append(process)
        except psutil.Error:
            continue
    return done.stdout, left


def test_a_failure_of_one_rank_alone_ends_the_run_and_all_its_processes(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    printed, left = run(ONE_RANK_FAILS_ALONE, configure(tmp_path), tmp_path)
    assert printed.strip() == "rank 1 can not go on"
    assert left == []


def test_a_signal_to_the_process_group_does_not_reach_ray(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    printed, left = run(SIGTERM_TO_ALL_OF_IT, configure(tmp_path), tmp_path)
    assert printed.splitlines() == ["asked to end", "Ray is there"]
    assert left == []


def test_a_worker_that_hangs_at_its_exit_is_ended(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    printed, left = run(WORKER_HANGS_AT_EXIT, configure(tmp_path), tmp_path)
    assert printed.strip() == "left"
    assert left == []


def test_a_controller_that_hangs_at_its_exit_on_a_cluster_that_stays_is_ended(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    with cluster_of(2) as (nodes, _):
        config = configure(tmp_path, f"cluster.address={nodes.address}", "train.steps=4")
        printed, _ = run(CONTROLLER_HANGS_AT_EXIT, config, tmp_path)
        with suppress(psutil.NoSuchProcess):
            controller = psutil.Process(int((tmp_path / "controller").read_text()))
            assert controller.status() == psutil.STATUS_ZOMBIE, "until its raylet hears of it"
    assert printed == "", "nor does Ray tell of a worker that died"


def test_ray_train_asks_its_own_cluster_whether_a_run_is_alive(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the newest cluster of the machine, which it would ask, it would end the run."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short,  # sockets' paths are
        cluster_of(1, include_dashboard=True) as (nodes, _),
    ):
        monkeypatch.setenv("TMPDIR", short)
        (Path(short) / "ray").mkdir()
        (Path(short) / "ray" / "ray_current_cluster").write_text(nodes.address)
        printed, left = run(BESIDE_ANOTHER, configure(tmp_path), tmp_path)
    assert printed.strip() == "ALIVE"
    assert left == []


def test_a_cluster_that_does_not_answer_is_named_at_once(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    printed, left = run(NOBODY_LISTENS, configure(tmp_path), tmp_path)
    assert printed.startswith("no Ray at 127.0.0.1:1 (key cluster.address)")
    assert left == []
