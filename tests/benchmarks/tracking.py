"""What tracking costs the loop, and how fast a long outage of MLflow is made up for.

`make bench-tracking`. First the call that rank 0 makes after each step, with the thread behind it that
writes. Then the spool of a run of 20,000 steps with 8 metrics each goes to a real server (sqlite, on
loopback) in turns with a bare loop of `log_batch`, which has its 1000 metrics at hand: each turn is a
tenth of both, and what the server's growing tables cost is the same for both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow_server import config_of, folder, mlflow_server

from panthalassa.storage import open_storage
from panthalassa.stream.ledger import Attempt
from panthalassa.tracking.mlflow_store import BATCH
from panthalassa.tracking.sender import Sender
from panthalassa.tracking.spool import RANKS, Record, Spool
from panthalassa.train.events import Step
from panthalassa.train.tracked import open_spool, records

METRICS = 8
TURNS = 10
CALL_TARGET, REPLAY_TARGET = 50e-6, 0.8


def step_of(step: int) -> Step:
    return Step(step, 1e9 + step, 5 / step, 0.5, 1e-3, 2048, 0.25, 0.01, 8192.0, 0.5, 100.5)


def calls(count: int) -> tuple[list[float], float]:
    """Seconds of each call, and those that both threads computed for one step."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="tracking-") as directory:
        began = Attempt(attempt=1, first_step=0, dp_size=1, tp_size=1, began=0.0, phases=[])
        spool = open_spool(open_storage(directory), began)
        before = time.process_time()
        for number in range(1, count + 1):
            step = step_of(number)
            start = time.perf_counter()
            for record in records(step):
                spool.log(record)
            seconds.append(time.perf_counter() - start)
            time.sleep(0.001)
        spool.close()
        return seconds, (time.process_time() - before) / count


def replay(steps: int) -> list[float]:
    """The rate of the sender as a share of the bare loop's, in each turn."""
    with (
        tempfile.TemporaryDirectory(prefix="tracking-") as directory,
        mlflow_server(Path(directory) / "server") as server,
    ):
        config = config_of(directory, "replayed", server.uri)
        sender = Sender(config, folder(config))
        spool = Spool(folder(config).below(RANKS), Record("attempt", 1e9, 0, {}), 1)
        spool.flush()
        sender.send()  # opens the MLflow run
        client = MlflowClient(server.uri)
        bare = client.create_run("0").info.run_id
        each = steps // TURNS
        shares = []
        for turn in range(TURNS):
            new = [record_of(step) for step in range(turn * each + 1, (turn + 1) * each + 1)]
            for record in new:
                spool.log(record)
            spool.flush()
            values = [metric for record in new for metric in metrics_of(record)]

            def log_all(values: list[Metric] = values) -> None:
                for first in range(0, len(values), BATCH):
                    client.log_batch(bare, metrics=values[first : first + BATCH])

            both = {"spool": sender.send, "bare": log_all}
            taken = {what: timed(both[what]) for what in sorted(both, reverse=turn % 2 == 0)}
            shares.append(taken["bare"] / taken["spool"])
            rates = {what: len(values) / seconds for what, seconds in sorted(taken.items())}
            print(
                "  metrics/s: " + ", ".join(f"{what} {rate:,.0f}" for what, rate in rates.items())
            )
        spool.close()
    return shares


def record_of(step: int) -> Record:
    return Record("metrics", 1e9 + step, step, {f"m{n}": step / 7 for n in range(METRICS)})


def metrics_of(record: Record) -> list[Metric]:
    at = int(record.at * 1000)
    return [Metric(name, float(v), at, record.step) for name, v in record.values.items()]


def timed(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=5_000)
    arguments = parser.parse_args()
    seconds, computed = calls(arguments.calls)
    ordered = sorted(seconds)
    print(
        f"a call takes {statistics.median(seconds) * 1e6:.1f} us (99 of 100 under "
        f"{ordered[len(ordered) * 99 // 100] * 1e6:.0f} us); target {CALL_TARGET * 1e6:.0f} us. Both "
        f"threads together compute {computed * 1e6:.0f} us for a step"
    )
    shares = replay(arguments.steps)
    print(
        f"replay has {statistics.median(shares):.2f} of the rate of a bare loop "
        f"({min(shares):.2f} to {max(shares):.2f}); target {REPLAY_TARGET}"
    )


if __name__ == "__main__":
    main()
