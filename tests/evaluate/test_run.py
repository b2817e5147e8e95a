"""An evaluation as people run it: one command from a configuration to figures with intervals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from asked import TEXTS, save_model
from checkpoints import flip
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config_file import build
from panthalassa.corpus.manifest import read_manifest
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.config import Evaluation, load
from panthalassa.evaluate.results import read_results, read_scores
from panthalassa.evaluate.run import evaluate
from panthalassa.jobs.submit import plan
from panthalassa.storage import open_storage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and data of a task of ours and one of the harness."""
    root = tmp_path_factory.mktemp("evaluated")
    save_model(root / "model")
    (root / "choices").mkdir()
    rows = [
        {"prompt": text[:3], "choices": [text[3:], "no", "yes"], "answer": n % 3, "group": "en"}
        for n, text in enumerate(TEXTS * 5)
    ]
    write_lines(root / "choices" / "test.jsonl", rows)
    (root / "harness" / "sst2").mkdir(parents=True)
    write_lines(
        root / "harness" / "sst2" / "validation.jsonl",
        [{"idx": n, "sentence": f"{text} {n}", "label": n % 2} for n, text in enumerate(TEXTS * 3)],
    )
    return root


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree(place: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(place / "model"),
        "output": str(output),
        "tasks": [{"name": "choices", "data": str(place / "choices")}],
        "cluster": {"workers": 2, "cpus_per_worker": 0.5},
    }


def test_a_command_tells_figures_and_goes_on_where_it_was(
    ray_cluster: str, place: Path, tmp_path: Path
) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text(yaml.safe_dump(tree(place, tmp_path / "a")))
    runner = CliRunner()
    first = runner.invoke(app, ["evaluate", str(config)])
    assert first.exit_code == 0, first.output
    assert "95 % interval" in first.output
    assert "most frequent answer" in " ".join(first.output.split())
    results = read_results(open_storage(str(tmp_path / "a")))
    figure = results.tasks["choices"].metrics["accuracy"].whole
    assert figure.n == 20
    assert figure.low <= figure.value <= figure.high
    assert results.tasks["choices"].metrics["accuracy"].baseline == 7 / 20
    again = runner.invoke(app, ["evaluate", str(config), "tasks=" + json.dumps(tasks(place))])
    assert again.exit_code == 0, again.output
    assert "12 requests, of which 0 are answered already" in " ".join(first.output.split())
    assert "12 requests, of which 12 are answered already" in " ".join(again.output.split())
    shorter = runner.invoke(app, ["evaluate", str(config), f"output={tmp_path / 'b'}", "length=16"])
    assert shorter.exit_code == 0, shorter.output
    compared = runner.invoke(app, ["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert compared.exit_code == 0, compared.output
    assert "20 items" in " ".join(compared.output.split())


def test_results_of_another_evaluation_are_not_written_over(
    ray_cluster: str, place: Path, tmp_path: Path
) -> None:
    config = build(tree(place, tmp_path / "out"), [], "test", Evaluation)
    evaluate(config, lambda line: None)
    before = (tmp_path / "out" / "results.json").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(place / "model", other)
    flip(0.9)(sorted(other.glob("*.safetensors"))[0])
    less = [{**tasks(place)[0], "limit": 3}]
    for change, message in (
        ({"model": str(other)}, "an evaluation of another model, .*: choose another output"),
        ({"tasks": less}, "an evaluation with other tasks: choose another output"),
        ({"chat": True, "length": 16}, "with other chat and length: choose another output"),
    ):
        changed = build(tree(place, tmp_path / "out") | change, [], "test", Evaluation)
        with pytest.raises(PanthalassaError, match=message):
            evaluate(changed, lambda line: None)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert len(list((tmp_path / "out" / "answers").iterdir())) == 1  # nothing else was asked


def test_a_command_finds_items_that_the_corpus_trains_on(
    ray_cluster: str, place: Path, small_corpus: Path, tmp_path: Path
) -> None:
    known = (small_corpus.parent / "texts" / "aa" / "0.txt").read_text()
    prompts = [known, "of this nothing is in there " * 5, "short", "shorter"]
    (tmp_path / "data").mkdir()
    write_lines(
        tmp_path / "data" / "test.jsonl",
        [{"prompt": prompt, "choices": ["yes", "no"], "answer": 0} for prompt in prompts],
    )
    config = tmp_path / "evaluate.yaml"
    entry = {"name": "choices", "data": str(tmp_path / "data")}
    config.write_text(yaml.safe_dump(tree(place, tmp_path / "out") | {"tasks": [entry]}))
    runner = CliRunner(env={"COLUMNS": "120"})
    ran = runner.invoke(app, ["evaluate", str(config), f"corpus={small_corpus}"])
    assert ran.exit_code == 0, ran.output
    assert "1 (25.0 %)" in " ".join(ran.output.split())
    result = read_results(open_storage(str(tmp_path / "out"))).tasks["choices"]
    assert result.contamination is not None
    assert result.contamination.corpus == read_manifest(open_storage(str(small_corpus))).fingerprint
    assert (result.contamination.found, result.contamination.short) == (1, 2)
    assert result.contamination.without["accuracy"].n == 3
    assert result.metrics["accuracy"].whole.n == 4


def tasks(place: Path) -> list[dict[str, str]]:
    return [{"name": "choices", "data": str(place / "choices")}]


def test_tasks_of_the_harness_stand_beside_ours(
    ray_cluster: str, place: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    both = [*tasks(place), {"name": "harness:sst2", "data": str(place / "harness"), "limit": 6}]
    config = build(tree(place, tmp_path) | {"tasks": both}, [], "test", Evaluation)
    results = evaluate(config, lambda line: None)
    assert set(results.tasks) == {"choices", "harness.sst2"}
    scores = read_scores(open_storage(str(tmp_path)), results, "harness.sst2")
    assert len(scores.ids) == results.tasks["harness.sst2"].metrics["acc"].whole.n == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks=[{name: nothing, data: .}]", "there is no task nothing"),
        ("tasks=[{name: choices, data: a, settings: {limit: 3}}]", "limit is no setting of a task"),
        (
            "tasks=[{name: xglue-ner, data: a, settings: {part: pos}}]",
            "part is no setting of a task",
        ),
        ("tasks=[]", "tasks=\\[\\]"),
        ("tasks=[{name: choices, data: a}, {name: choices, data: b}]", "choices is there twice"),
        ("corpus=/nowhere", "/nowhere"),
        ("batch_token=5", "did you mean batch_tokens"),
        ("tasks=[{name: choices, data: nowhere}]", "nowhere"),
    ],
)
def test_what_can_not_be_asked_is_said_before_anything_starts(
    place: Path, tmp_path: Path, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panthalassa.evaluate.run.connected", None)  # Ray would not be started
    with pytest.raises(PanthalassaError, match=message):
        evaluate(build(tree(place, tmp_path), [override], "test", Evaluation), print)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("evaluate-*.yaml")))
def test_what_is_shipped_can_be_run(path: Path) -> None:
    assert load(path, []).tasks


def test_each_key_has_its_explanation() -> None:
    for section in (Evaluation, Evaluation.model_fields["tasks"].annotation.__args__[0]):  # type: ignore[union-attr]
        for name, field in section.model_fields.items():
            assert field.description, name


def test_an_evaluation_is_sent_with_folders_that_its_job_sees(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    relative = {"output": "evaluations/small", "corpus": "data/small"}
    path.write_text(yaml.safe_dump(tree(place, tmp_path) | relative))
    config = load(path, [])
    request = plan(config, path, [], "evaluate", ROOT, local=True)
    assert f'output="{Path.cwd() / "evaluations/small"}"' in request.entrypoint
    assert f'corpus="{Path.cwd() / "data/small"}"' in request.entrypoint
    assert "jobs/evaluate.py --config evaluate.yaml" in request.entrypoint
    with pytest.raises(ConfigError, match=r"output=.*, corpus=data/small: a relative folder"):
        plan(config, path, [], "evaluate", ROOT, local=False)


def test_the_job_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text("model: /nowhere\n")
    job = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 1
    assert "output: missing" in job.stderr
