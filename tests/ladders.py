"""Sweeps for tests, as they are on record, without the training: a search, and a ladder with a law."""

import random

import numpy as np
import yaml
from reports import BATCH, LENGTH, configuration

from panthalassa.run_config import keep
from panthalassa.storage import Storage
from panthalassa.sweep.loss_law import LossLaw
from panthalassa.sweep.results import Trial

LAW = LossLaw.of(np.array([np.log(60.0), np.log(900.0), 2.0, 0.25, 0.5]))
STEPS = (200, 400, 800, 1600)
RATE = "train.optimizer.learning_rate"
SHAPES = tuple(
    {
        "vocabulary_size": 4096,
        "hidden_size": hidden,
        "layers": layers,
        "heads": hidden // 32,
        "kv_heads": hidden // 32,
        "head_size": 32,
        "ffn_size": 3 * hidden,
        "tied_embeddings": True,
    }
    for hidden, layers in ((32, 2), (64, 2), (128, 3), (192, 4), (256, 6))
)


def parameters(shape: dict[str, object]) -> int:
    hidden, layers = int(str(shape["hidden_size"])), int(str(shape["layers"]))
    return 4096 * hidden + layers * (4 * hidden**2 + 9 * hidden**2 + 2 * hidden) + hidden


def write_sweep(folder: Storage, objective: list[str], space: dict[str, object]) -> None:
    """What a page reads of the configuration of a sweep."""
    tree = {"sweep": {"objective": objective, "space": space}}
    folder.write("config.yaml", yaml.safe_dump(tree).encode())


def ladder(folder: Storage) -> list[Trial]:
    """A trial of each shape for each number of steps, with the configuration of its run in `folder`."""
    write_sweep(folder, ["loss"], {"model": list(SHAPES), "train.steps": list(STEPS)})
    chance, found = np.random.default_rng(0), []
    for shape in SHAPES:
        for steps in STEPS:
            number = len(found)
            run = f"ladder-{number:05d}"
            keep(configuration(run, steps, shape), folder.below(run))
            size, tokens = parameters(shape), steps * BATCH * LENGTH
            loss = float(LAW.loss(size, tokens)) * float(np.exp(0.01 * chance.normal()))
            metrics = {
                "loss": loss,
                "parameters": float(size),
                "tokens": float(tokens),
                "tokens_per_second": 1e9 / size,
            }
            values = {"model": shape, "train.steps": steps}
            found.append(Trial(number, run, values, "finished", steps, metrics))
    return found


def search(folder: Storage, name: str = "linear", count: int = 14) -> list[Trial]:
    """Random trials of some keys: most finish, some are stopped, two fail, one runs."""
    write_sweep(folder, ["loss", "j_per_token"], {RATE: {"low": 1e-4, "high": 0.02, "log": True}})
    chance = random.Random(1)
    found = []
    for number in range(count):
        rate = 10 ** chance.uniform(-4, -1.7)
        values = {
            RATE: rate,
            "train.optimizer.weight_decay": chance.uniform(0, 0.3),
            "train.schedule.warmup_steps": chance.choice([5, 10, 20]),
            "train.schedule.kind": chance.choice(["cosine", "wsd", name]),
        }
        loss = 5.5 + 0.6 * abs(np.log10(rate) + 2.6) + 0.1 * chance.random()
        metrics = {
            "loss": loss,
            "tokens_per_second": chance.uniform(2800, 3400),
            "joules": chance.uniform(800, 1200),
        }
        metrics["j_per_token"] = metrics["joules"] / 1e5
        state, step, problem = "finished", 90, None
        if number in (3, 8):
            state, step, problem = "failed", 20, "diverged: its held-out loss is nan after step 20"
            metrics = {}
        elif number % 3 == 1:
            state, step = "stopped", 30
            metrics["loss"] = loss + 0.8
        elif number == count - 2:
            state, step = "running", 40
        found.append(
            Trial(number, f"search-{number:05d}", values, state, step, metrics, problem)  # type: ignore[arg-type]
        )
    return found
