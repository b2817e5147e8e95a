"""What ASHA saves, and what a killed sweep repeats: twelve small models on two cores.

`make bench-sweep`. The sweep of `jobs/configs/sweep-laptop.yaml`, on a corpus of two invented
languages, is run from its start to its end; and once more, killed at a random moment and started again.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "sweep-laptop.yaml"
TARGET_SECONDS, TARGET_SAVED = 480.0, 0.4
PATIENCE = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill-after", type=float, default=random.uniform(40, 160))
    kill_after = parser.parse_args().kill_after
    from conftest import prepare_small_corpus  # sets the environment, too

    from panthalassa.storage import open_storage
    from panthalassa.stream.ledger import accounts
    from panthalassa.sweep.results import trials

    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        corpus = prepare_small_corpus(folder)

        def start(name: str) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "panthalassa.cli", "sweep", str(CONFIG)),
                    *(f"run.directory={folder}/runs", f"run.name={name}"),
                    *(f"corpus.directory={corpus}", "train.sequence_length=64"),
                    "train.global_batch=32",
                ]
            )

        began = time.monotonic()
        assert start("whole").wait(PATIENCE) == 0
        seconds = time.monotonic() - began
        known = trials(open_storage(f"{folder}/runs/whole"))
        done, full = sum(trial.step for trial in known), 90 * len(known)
        print(
            f"{len(known)} trials in {seconds:.0f} s (target {TARGET_SECONDS:.0f}); {done} of {full} "
            f"steps: {1 - done / full:.0%} saved (target {TARGET_SAVED:.0%})"
        )

        killed = start("killed")
        time.sleep(kill_after)
        killed.kill()
        killed.wait()
        place = open_storage(f"{folder}/runs/killed")
        over = {trial.number: trial for trial in trials(place) if trial.over}
        before = {n: len(list(accounts(place.below(t.run)))) for n, t in over.items()}
        assert start("killed").wait(PATIENCE) == 0
        known = trials(place)
        repeated = [n for n in over if len(list(accounts(place.below(known[n].run)))) > before[n]]
        steps = {
            trial.number: sum(len(account.steps) for account in accounts(place.below(trial.run)))
            for trial in known
        }
        lost = {n: count - known[n].step for n, count in steps.items() if count > known[n].step}
        print(
            f"killed after {kill_after:.0f} s with {len(over)} trials over: {len(repeated)} of them "
            f"repeated; steps trained again, by trial: {lost or 'none'}"
        )


if __name__ == "__main__":
    main()
