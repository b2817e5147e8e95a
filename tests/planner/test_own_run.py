"""A run's folder is enough to predict steps of other sizes on its hardware."""

from dataclasses import replace
from pathlib import Path

import pytest
from image_manifests import seen_manifest

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import MANIFESTS
from panthalassa.errors import PanthalassaError
from panthalassa.planner import own_run
from panthalassa.planner.calibration import factors
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.own_run import learn
from panthalassa.planner.rank import counted
from panthalassa.planner.speed import Factors, speed
from panthalassa.run_config import keep
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.curriculum import planned
from panthalassa.stream.ledger import Attempt, Ledger
from panthalassa.tracking.spool import RANKS, Record, Spool

SLOW = replace(
    factors(), matmul={"cpu": 0.05}, attention={"cpu": 0.02}, memory=0.05, step_seconds=0.03
)
"""A CPU at a twentieth of its peak, so that no test's machine is slower."""


def configuration(*overrides: str) -> Config:
    tree = {
        "run": {"name": "planned"},
        "corpus": {"directory": "nowhere", "sources": ["nowhere"]},
        "model": {"preset": "laptop"},
        "train": {"steps": 100, "global_batch": 8, "micro_batch": 4, "sequence_length": 256},
        "cluster": {"workers": 1},
    }
    return build(tree, list(overrides), "test", Config)


def layout(config: Config, ranks: int = 1) -> Layout:
    return Layout(ranks, 1, 1, config.train.micro_batch, "none", keep_gathered=False)


def truth(config: Config, chip: own_run.GPU, known: Factors, ranks: int = 1) -> float:
    counts = counted(Workload.of(config), layout(config, ranks), ranks, compiled=False)
    return speed(counts, own_run.place(chip, ranks), known).step_seconds


def write_run(
    folder: Path, config: Config, steps: dict[int, list[float]], waited: float = 0.0
) -> Storage:
    """A run as its ranks would have left it: for each number of ranks an attempt."""
    run = open_storage(str(folder))
    keep(config, run)
    step = 0
    for number, (ranks, seconds) in enumerate(steps.items(), 1):
        first = Record("attempt", 0.0, step, {"dp_size": ranks, "tp_size": 1})
        spool = Spool(run.below(RANKS), first, number)
        for each in seconds:
            step += 1
            values = {"step_seconds": each + waited, "data_seconds": waited, "loss": 1.0}
            spool.log(Record("metrics", 0.0, step, values))
        spool.close()
    return run


def test_other_batches_and_ranks_are_predicted_from_the_steps_of_a_run(tmp_path: Path) -> None:
    config = configuration()
    chip = own_run.chip_of(config, None, open_storage(str(tmp_path)))
    one, two = (truth(config, chip, SLOW, ranks) for ranks in (1, 2))
    noise = (1.0, 0.98, 1.02, 1.0, 3.0)
    steps = {
        1: [50.0, *(one * each for each in noise)],
        2: [50.0, *(two * each for each in noise)],
    }
    run = write_run(tmp_path / "run", config, steps, waited=1.0)
    own = learn(run, config, None)
    assert own.told.startswith("10 steps of ")
    assert "matmul.cpu" in own.told
    for batch in (4, 16, 64):
        other = configuration(f"train.global_batch={batch}")
        predicted = truth(other, own.gpu, own.fit.factors)
        assert predicted == pytest.approx(truth(other, chip, SLOW), rel=0.15)


def test_a_run_that_lost_a_rank_of_a_node_tells_as_much(tmp_path: Path) -> None:
    on_gpus = configuration("cluster.gpus_per_worker=1", "parallel.precision=bf16")
    run = write_run(tmp_path / "gpus", on_gpus, {16: [1.0] * 5, 15: [1.1] * 5})
    own = learn(run, on_gpus, "a100-80gb")
    assert own.told.startswith("8 steps of ")
    assert own.fit.factors.step_seconds > 3 * factors().step_seconds


def test_a_run_that_tells_nothing_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = configuration()
    run = write_run(tmp_path / "short", config, {1: [1.0, 1.0, 1.0]})
    with pytest.raises(PanthalassaError, match="let it train for longer"):
        learn(run, config, None)
    with pytest.raises(PanthalassaError, match=r"make parallel\.precision the same"):
        learn(run, configuration("parallel.precision=bf16"), None)
    with pytest.raises(PanthalassaError, match="leave out --gpu"):
        learn(run, config, "a100-80gb")
    on_gpus = write_run(
        tmp_path / "gpus", configuration("cluster.gpus_per_worker=1"), {1: [1.0] * 5}
    )
    with pytest.raises(PanthalassaError, match="--gpu a100-80gb, say"):
        learn(on_gpus, config, None)
    with pytest.raises(PanthalassaError, match="unknown GPU 'b100'"):
        learn(on_gpus, config, "b100")
    with pytest.raises(PanthalassaError, match="no run at"):
        learn(open_storage(str(tmp_path / "nothing")), config, None)


def test_images_are_those_of_the_phase_that_a_run_is_in(tmp_path: Path) -> None:
    config = configuration("model.preset=laptop-vision", "train.sequence_length=64")
    corpora = sorted(
        (seen_manifest(text=0, one=32), seen_manifest(text=0, one=64)),
        key=lambda each: each.fingerprint,
    )
    newest, oldest = corpora  # the newest has the lower name
    run = write_run(tmp_path / "run", config, {1: [1.0] * 5})
    for corpus in corpora:
        run.below(MANIFESTS).write(f"{corpus.fingerprint}.json", corpus.encode())
    first = planned(config, oldest.fingerprint)[0]
    changes = {"corpus": newest.fingerprint, "first_step": 3, "image_share": 0.25}
    phases = [first, first.model_copy(update=changes)]
    later = phases[1].model_copy(update={"first_step": 50, "image_share": 0.75})
    for number, (step, known) in enumerate([(0, phases[:1]), (3, [*phases, later])], 1):
        line = Attempt(
            attempt=number, first_step=step, dp_size=1, tp_size=1, began=0.0, phases=known
        )
        Ledger(run, line).flush()
    seen = own_run.images_seen(run, config)
    assert seen.image_samples == 0.25
    assert seen.images_per_sample == (newest.shards[1].images or 0) / 32
