"""A ladder as its sweep leaves it: the planted law is found, and what is none is refused."""

import re
from dataclasses import replace
from pathlib import Path

import yaml
from click.testing import Result
from conftest import tree
from ladders import LAW, SHAPES, STEPS, ladder, search
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.run_config import keep
from panthalassa.storage import open_storage
from panthalassa.sweep.ladder import study
from panthalassa.sweep.results import record
from panthalassa.sweep.space import load


def scaling(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["scaling", *arguments])


def test_the_command_tells_the_law_of_a_ladder_and_the_best_size_for_a_cluster(
    tmp_path: Path,
) -> None:
    folder = open_storage(str(tmp_path))
    for trial in ladder(folder):
        record(folder, trial)
    told = scaling(str(tmp_path), "--gpus", "64", "--gpu", "H100", "--days", "3")
    assert told.exit_code == 0, told.output
    for name, planted in (("alpha", LAW.alpha), ("beta", LAW.beta)):
        found = re.search(rf"{name} +\S+ \(95% (\S+) to (\S+)\) for both", told.output)
        assert found is not None, told.output
        assert float(found[1]) < planted < float(found[2])
    assert "64 x H100 x 3 days x 989 TFLOP/s x 43.0% MFU" in told.output
    assert "an extrapolation" in told.output
    assert "through 20 runs of 157,856 to 6.16 M parameters" in told.output
    assert told.output.rstrip().endswith("scaling.html")
    assert "Besiroglu 2024" in (tmp_path / "scaling.html").read_text()


def test_a_ladder_that_determines_no_law_names_no_size(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    for trial in ladder(folder):
        off = 1.3 if trial.number % 2 else 1.0
        record(
            folder, replace(trial, metrics=trial.metrics | {"loss": off * trial.metrics["loss"]})
        )
    told = scaling(str(tmp_path))
    assert told.exit_code == 0, told.output
    assert "these losses do not determine alpha" in told.output
    assert re.search("ladder's largest run: not known", told.output)
    assert re.search(r"this ladder +not known", told.output)
    assert "26.8 B" in told.output


def test_of_each_size_and_budget_the_best_trial_counts(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    known = ladder(folder)
    worse = [
        replace(
            t, number=t.number + len(known), metrics=t.metrics | {"loss": t.metrics["loss"] + 1}
        )
        for t in known
    ]
    assert list(study(folder, [*worse, *known]).trials) == known


def test_what_is_no_ladder_is_refused_with_what_one_takes(tmp_path: Path) -> None:
    nothing = scaling(str(tmp_path))
    assert nothing.exit_code == 1
    assert f"no run at {tmp_path}" in nothing.stderr
    folder = open_storage(str(tmp_path))
    for trial in search(folder):
        record(folder, trial)
    told = scaling(str(tmp_path)).stderr
    assert "a loss law takes 7 finished trials over 3 model sizes" in told
    assert "Trials that count here: 0, distinct sizes: 0, distinct budgets: 0" in told
    assert "The sweep has 14 trials" in told


def test_one_command_runs_the_ladder_that_a_configuration_describes_and_tells_its_law(
    ray_cluster: str, small_corpus: Path, tmp_path: Path
) -> None:
    """Here its trials are over already."""
    space = {"model": list(SHAPES), "train.steps": list(STEPS)}
    data = tree(small_corpus, tmp_path) | {"sweep": {"space": space, "search": "grid"}}
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump(data))
    folder = open_storage(str(tmp_path / "runs" / "small"))
    for trial in ladder(folder):
        record(folder, trial)
    keep(load(tmp_path / "ladder.yaml", []).anchored().config, folder)
    told = scaling(str(tmp_path / "ladder.yaml"))
    assert told.exit_code == 0, told.output
    assert "small: complete; 20 finished" in told.output
    assert "through 20 runs of 157,856 to 6.16 M parameters" in told.output
