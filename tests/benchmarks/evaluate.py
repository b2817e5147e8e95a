"""What a second worker brings an evaluation: `make bench-evaluate`.

A random model of 5 M parameters is asked for likelihoods, by one worker and by two in turn; a ratio is
that of one round. Each worker computes on one thread. Starting workers and opening the model does not
count, and is told by itself.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from asked import TEXTS, save_model

from panthalassa.cluster import connected
from panthalassa.config_file import build
from panthalassa.evaluate.config import Evaluation
from panthalassa.evaluate.engine import Engine
from panthalassa.evaluate.task import Likelihood, Request
from panthalassa.storage import open_storage

TARGET = 1.6
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def requests(count: int) -> list[Request]:
    return [
        Likelihood(f"{number} {TEXTS[number % 4] * (2 + number % 5)}", TEXTS[number % 3])
        for number in range(count)
    ]


def evaluation(place: Path, workers: int) -> Evaluation:
    tree = {
        "model": str(place / "model"),
        "output": str(place / "answers"),
        "tasks": [{"name": "choices", "data": "none"}],
        "cluster": {"workers": workers, "cpus_per_worker": 0.5},
    }
    return build(tree, [], "benchmark", Evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_model(place / "model", 256, **SHAPE)
        ratios, seconds, starts = [], {1: [], 2: []}, {1: [], 2: []}
        with connected(evaluation(place, 2).cluster):
            for number in range(arguments.rounds):
                for workers in (1, 2):
                    answers = open_storage(str(place / f"answers-{number}-{workers}"))
                    began = time.perf_counter()
                    config = evaluation(place, workers)
                    with Engine(config, answers, lambda line: None) as engine:
                        engine.answers(requests(16))
                        engine.processes()  # all are there
                        ready = time.perf_counter()
                        engine.answers(requests(arguments.requests)[16:])
                        seconds[workers].append(time.perf_counter() - ready)
                        starts[workers].append(ready - began)
                ratios.append(seconds[1][-1] / seconds[2][-1])
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    print(
        f"{arguments.requests} requests: one worker {one:.1f} s, two {two:.1f} s; median ratio "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); target at least "
        f"{TARGET}; to start one worker takes {statistics.median(starts[1]):.1f} s, two "
        f"{statistics.median(starts[2]):.1f} s"
    )


if __name__ == "__main__":
    main()
