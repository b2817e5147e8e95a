"""How long `panthalassa submit` takes to a running job, over Ray's own bare job.

`make bench-submit`. On a warm head on loopback, in turn: `ray job submit -- true` from its call to its
end, and `panthalassa submit` from its call until it shows that the job's driver has checked everything,
joined the cluster and starts the ranks; and until their first step.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

TARGET = 15.0
PATIENCE = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    from conftest import PLATFORM, prepare_small_corpus, tree  # sets the environment, too
    from heads import RAY, head

    from panthalassa.config import Config
    from panthalassa.config_file import build

    with tempfile.TemporaryDirectory(prefix="submit-") as temporary, head() as cluster:
        folder = Path(temporary)
        config = build(
            tree(prepare_small_corpus(folder), folder), ["train.steps=100000"], "", Config
        )
        (folder / "config.yaml").write_text(config.dump())
        environment = cluster.environment | {
            "RAY_API_SERVER_ADDRESS": cluster.url,
            "PYTHONPATH": str(PLATFORM),
            "PANTHALASSA_TEST": "user",
        }
        bare = [*RAY, "job", "submit", "--", "true"]
        ours = [sys.executable, "-m", "panthalassa.cli", "submit", str(folder / "config.yaml")]

        def bare_job() -> float:
            began = time.monotonic()
            subprocess.run(bare, env=environment, check=True, capture_output=True, timeout=PATIENCE)
            return time.monotonic() - began

        def our_job() -> tuple[float, float]:
            began, running = time.monotonic(), 0.0
            job = subprocess.Popen(
                ours, env=environment, cwd=PLATFORM.parent, stdout=subprocess.PIPE, text=True
            )
            assert job.stdout
            for line in job.stdout:
                if line.startswith("starting "):
                    running = time.monotonic() - began
                if line.startswith("first step after"):
                    break
            stepping = time.monotonic() - began
            job.send_signal(2)
            job.communicate(timeout=PATIENCE)
            shutil.rmtree(folder / "runs")
            return running, stepping

        bare_job()  # the head is warm then
        found = []
        for number in range(rounds):
            one, (running, stepping) = bare_job(), our_job()
            found.append((running - one, stepping - one))
            print(
                f"round {number + 1}: bare {one:.1f} s, ours running after {running:.1f} s, "
                f"first step after {stepping:.1f} s",
                flush=True,
            )
    running, stepping = (statistics.median(part) for part in zip(*found, strict=True))
    print(
        f"over the bare job, medians: running {running:.1f} s (target {TARGET:g}), step {stepping:.1f} s"
    )


if __name__ == "__main__":
    main()
