"""How long the report of a long run takes, and how large it is, beside the work that nobody can avoid.

`make bench-report`. A run of STEPS steps is written as the platform leaves it. Then `panthalassa report`
runs as a command, start included, and its time is set beside that of merely parsing the same metrics.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from panthalassa.tracking.spool import CHECKSUM

TARGET_SECONDS = 20.0
TARGET_MEGABYTES = 5.0


def parse(run: Path) -> float:
    """Seconds to parse each line of the run's metrics."""
    began = time.perf_counter()
    for file in (run / "metrics").rglob("*.jsonl"):
        for line in file.open():
            json.loads(line[CHECKSUM + 1 :])
    return time.perf_counter() - began


def report(run: Path, *arguments: str) -> tuple[float, float]:
    """Seconds of the command, and MB of its page."""
    page = run.parent / "page.html"
    command = [sys.executable, "-m", "panthalassa.cli", "report", str(run), "--out", str(page)]
    began = time.perf_counter()
    subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, page.stat().st_size / 1e6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=100_000)
    steps = arguments.parse_args().steps
    from reports import LANGUAGES, write_run

    from panthalassa.storage import open_storage

    with tempfile.TemporaryDirectory() as folder:
        ocean, tide = Path(folder) / "ocean", Path(folder) / "tide"
        for seed, run in enumerate((ocean, tide)):
            write_run(open_storage(str(run)), steps, run.name, languages=LANGUAGES, seed=seed)
        parsed = parse(ocean)
        for name, beside in (("one run", []), ("two runs", ["--compare", str(tide)])):
            seconds, megabytes = report(ocean, *beside)
            print(
                f"{name} of {steps:,} steps: {seconds:.1f} s (target {TARGET_SECONDS:.0f} for one), "
                f"{seconds / parsed:.1f} times the parsing of one run's metrics; "
                f"{megabytes:.2f} MB (target {TARGET_MEGABYTES:.0f})"
            )


if __name__ == "__main__":
    main()
