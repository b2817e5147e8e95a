"""Runs for the tests of the report and its benchmark: a folder as a run leaves it, without the training.

Loss, speed and time follow a script; the ledger, the account of time, the configuration and the
checkpoint are written by the platform's own classes.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from phases import bare_manifest

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import Shard
from panthalassa.energy import ledger as energy
from panthalassa.energy import lines
from panthalassa.journal import Chain, Journal
from panthalassa.line_ledger import Began, Ended, LedgerLine, Lost
from panthalassa.report.page import write_report
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.curriculum import Phase
from panthalassa.stream.ledger import Attempt, Consumed, Ledger
from panthalassa.tracking.spool import RANKS, Record, encode
from panthalassa.train.audit import keep_manifest
from panthalassa.train.checkpoint import COMMIT, Commit, folder
from panthalassa.train.events import Evaluated
from panthalassa.train.goodput import Launched, Line, Spent, Steps

T = 1_800_000_000.0
LANGUAGES = ("en", "zh", "es", "ar", "sw")
BATCH, LENGTH = 8, 64
LAPTOP = {"preset": "laptop"}
EVALUATIONS = 20
FIGURES = {
    "loss",
    "speed",
    "mfu",
    "joules",
    "kwh",
    "goodput-0",
    "world",
    "languages",
    "checkpoints",
}
"""Of a run from which nothing is missing."""
Edit = Callable[[int, dict[str, float]], Mapping[str, float]]


def configuration(name: str, steps: int, model: Mapping[str, object] = LAPTOP) -> Config:
    tree = {
        "run": {"name": name, "seed": 1},
        "corpus": {"directory": "data/sea"},
        "model": dict(model),
        "train": {
            "steps": steps,
            "global_batch": BATCH,
            "micro_batch": 4,
            "sequence_length": LENGTH,
            "schedule": {"warmup_steps": 2},
        },
    }
    return build(tree, [], "test", Config)


def write_run(
    run: Storage,
    steps: int,
    name: str = "ocean",
    joules: float | None = 240.0,
    languages: Sequence[str] = LANGUAGES,
    step_seconds: float = 0.5,
    planned: int | None = None,
    edit: Edit = lambda step, metrics: metrics,
    seed: int = 0,
) -> None:
    """A run of so many steps, at half of which it lost its ranks and a tenth of the steps."""
    run.write("config.yaml", configuration(name, planned or steps).dump().encode())
    write_metrics(run, steps, joules, step_seconds, edit, seed)
    write_time(run, steps, step_seconds)
    write_energy(run, steps, joules, step_seconds)
    write_ledger(run, steps, languages)
    write_checkpoint(run, steps)


def write_metrics(
    run: Storage, steps: int, joules: float | None, step_seconds: float, edit: Edit, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(size=(steps + 1, 3)).tolist()
    journal = Journal(run.below(RANKS), 1)
    journal.add(encode(Record("attempt", T, 0, {"dp_size": 1, "tp_size": 1})))
    for step in range(1, steps + 1):
        a, b, c = noise[step]
        loss = 2.2 + 6.2 * math.exp(-12 * step / steps) + 0.05 * a
        speed = BATCH * LENGTH / step_seconds * (1 + 0.02 * b)
        metrics = {
            "loss": loss,
            "grad_norm": 1 + 0.1 * abs(c),
            "learning_rate": 1e-3,
            "tokens_per_second": speed,
            "mfu": speed / 2500,
            "step_seconds": step_seconds,
            "data_seconds": 0.01,
        }
        if joules is not None:
            metrics["joules"] = joules * (1 + 0.03 * c)
        if step % max(1, steps // EVALUATIONS) == 0:
            metrics |= {"held_out_loss": loss + 0.15, "checkpoint_seconds": 3 + abs(a)}
            metrics["stall_seconds"] = 0.05 + 0.01 * abs(b)
        at = T + step * step_seconds
        journal.add(encode(Record("metrics", at, step, dict(edit(step, metrics)))))
    journal.write()


def write_energy(run: Storage, steps: int, joules: float | None, step_seconds: float) -> None:
    """One device, which takes the same in each step; nothing when it is not measured."""
    found: list[LedgerLine] = [lines.Began(at=T)]
    if joules is not None:
        device: dict[str, float | None] = {"GPU-0": 0.0}
        found.append(lines.Metering(at=T, source="nvml counter", refresh=0.02, devices=device))
        for step in range(1, steps + 1):
            line = lines.Steps(
                at=T + step * step_seconds,
                first=step,
                seconds=[step_seconds],
                tokens=[BATCH * LENGTH],
                joules=[joules],
                data_wait=[0.0],
            )
            found.append(line)
    write_lines(run.below(energy.FOLDER), 1, found)


def write_lines(folder: Storage, number: int, lines: Sequence[LedgerLine]) -> None:
    """The journal of a command."""
    journal, chain = Journal(folder, number), Chain()
    for line in lines:
        journal.add(chain.seal(line.model_dump_json()))
    journal.write()


def write_time(run: Storage, steps: int, step_seconds: float) -> None:
    """Two commands: the first loses its ranks half way, goes on with half of them and is stopped; a day
    later the second ends the run."""
    half, last, again = steps // 2, steps * 3 // 4, steps // 2 - steps // 10
    now = T
    lines: list[Line] = []

    def train(first: int, end: int) -> None:
        nonlocal now
        merged = max(1, int(5 / step_seconds))
        for start in range(first, end + 1, merged):
            stop = min(start + merged - 1, end)
            seconds = (stop - start + 1) * step_seconds
            now += seconds
            waited = 0.03 * seconds
            lines.append(
                Steps(at=now, first=start, last=stop, seconds=seconds, data_seconds=waited)
            )
        now += 0.01 * steps * step_seconds
        lines.append(Spent(at=now, what="checkpoint", seconds=0.01 * steps * step_seconds))

    pause = 0.04 * steps * step_seconds
    lines += [Began(at=now), Launched(at=now + 1, workers=8)]
    now += pause
    train(1, half)
    lines += [Lost(at=now + 1, planned=False), Launched(at=now + 2, workers=4)]
    now += pause
    train(again + 1, last)
    lines.append(Ended(at=now + 1))
    write_lines(run.below("goodput"), int(T * 1000), lines)
    lines.clear()
    now += 86_400
    number = int(now * 1000)
    lines += [Began(at=now), Launched(at=now + 1, workers=8)]
    now += pause
    train(last + 1, steps)
    lines += [
        Spent(at=now + pause / 4, what="evaluation", seconds=pause / 4),
        Ended(at=now + pause / 3),
    ]
    write_lines(run.below("goodput"), number, lines)


def write_ledger(run: Storage, steps: int, languages: Sequence[str]) -> None:
    shards = [
        Shard(
            path=f"train/{number}/0.parquet",
            domain=language,
            split="train",
            rows=200 * (number + 1),
            tokens=200 * (number + 1) * LENGTH,
            row_groups=(200 * (number + 1),),
            size=1,
            sha256=hashlib.sha256(language.encode()).hexdigest(),
        )
        for number, language in enumerate(languages)
    ]
    corpus = bare_manifest(shards, LENGTH)
    keep_manifest(run, corpus)
    head = Attempt(
        attempt=1, first_step=0, dp_size=8, tp_size=1, began=T, phases=[phase(corpus.fingerprint)]
    )
    ledger = Ledger(run, head)
    for step in range(steps):
        ledger.record(Consumed(step=step, samples=BATCH, digest="0" * 32))
    ledger.flush()


def phase(fingerprint: str) -> Phase:
    return Phase(
        first_step=0,
        corpus=fingerprint,
        seed=1,
        temperature=1.0,
        weights=None,
        sequence_length=LENGTH,
        global_batch=BATCH,
    )


def write_checkpoint(run: Storage, steps: int) -> None:
    commit = Commit(
        model={},
        phases=[phase("0" * 64)],
        step=steps,
        samples=steps * BATCH,
        evaluations=[Evaluated(steps, 2.4, 1000)],
        healthy=True,
        files={".metadata": "0" * 64},
    )
    run.write(f"{folder(steps)}/.metadata", b"0" * 1000)
    run.write(f"{folder(steps)}/{COMMIT}", commit.sealed().model_dump_json().encode())


def write_page(folder: Path, steps: int, beside: Path | None = None) -> Path:
    """The report of a run of so many steps in `folder`, beside another."""
    run = open_storage(str(folder / "ocean"))
    write_run(run, steps)
    write_report(run, beside and open_storage(str(beside)))
    return folder / "ocean" / "report.html"
