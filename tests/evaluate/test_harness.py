"""Tasks of the LM Evaluation Harness from local files: what they ask, and what comes of the answers."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked import LENGTH, TEXTS, save_model

from panthalassa.config_evaluation import Asked
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.answering import Answerer
from panthalassa.evaluate.harness_data import offline, open_tasks
from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Scores
from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage

offline()
pytest.importorskip("lm_eval")

SMALL: dict[str, list[dict[str, Any]]] = {
    "sst2": [{"idx": n, "sentence": f"{TEXTS[n % 4]} {n}", "label": n % 3 % 2} for n in range(12)],
    "cola": [{"idx": n, "sentence": f"{n} {TEXTS[n % 4]}", "label": n % 2} for n in range(12)],
    "mrpc": [
        {"idx": n, "sentence1": TEXTS[n % 4], "sentence2": f"the {n}", "label": n % 2}
        for n in range(12)
    ],
    "boolq": [
        {"idx": n, "passage": TEXTS[n % 4] * 8, "question": f"is it {n}", "label": n % 2}
        for n in range(8)
    ],
    "xnli_en": [
        {"premise": TEXTS[n % 4], "hypothesis": f"the cat {n}", "label": n % 3} for n in range(9)
    ],
    "paws_en": [
        {"id": n, "sentence1": TEXTS[n % 4], "sentence2": f"the mat {n}.", "label": n % 2}
        for n in range(8)
    ],
    "wikitext": [{"page": " ".join(TEXTS) * (n + 1)} for n in range(4)],
    "gsm8k": [
        {"question": f"{n} cats and {n} cats?", "answer": f"So it is #### {2 * n}"}
        for n in range(6)
    ],
}
TEST_SPLIT = ("gsm8k", "paws_en", "wikitext")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("asked") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each task, as the harness names it."""
    place = tmp_path_factory.mktemp("data")
    for task, rows in SMALL.items():
        (place / task).mkdir()
        split = "test" if task in TEST_SPLIT else "validation"
        for name in (split, "train"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (place / task / f"{name}.jsonl").write_text(lines)
    return place


@pytest.fixture(scope="module")
def score(model: Path, data: Path) -> Callable[..., dict[str, Scores]]:
    """score(name, …) -> what our adapter makes of a task."""
    from panthalassa.evaluate.harness import HarnessModel, run

    opened = open_model(open_storage(str(model)), torch.device("cpu"))
    adapter = HarnessModel(Answerer(opened.model, opened.tokenizer, LENGTH, 2048).answers)

    def find(name: str, **fields: Any) -> dict[str, Scores]:
        asked = Asked(name=f"harness:{name}", data=str(data), **fields)
        return dict(run([asked], adapter, lambda line: None))

    return find


def figure(found: Scores, metric: str) -> float:
    return AGGREGATES[found.metrics[metric]](found.numbers[metric])


@pytest.mark.parametrize("task", list(SMALL))
def test_scores_are_those_of_transformers(
    model: Path,
    data: Path,
    score: Callable[..., dict[str, Scores]],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    pytest.importorskip("accelerate")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    rolling = task == "wikitext"
    # A tokenizer that puts bos in front has it scored by HFLM, as the first token of a rolling text.
    theirs = HFLM(
        pretrained=str(model), device="cpu", batch_size=4, add_bos_token=False if rolling else None
    )
    tasks = open_tasks(task, open_storage(str(data)), 0)
    if tasks[task].get_config("output_type") == "generate_until":
        tasks[task].set_config("generation_kwargs", {"max_gen_toks": 16}, update=True)
    expected = evaluate(theirs, {"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=True)
    monkeypatch.setattr("panthalassa.evaluate.harness.NEW_TOKENS", 16)
    (found,) = score(task, settings={"num_fewshot": 0}).values()
    told = {
        name.partition(",")[0]: value
        for name, value in expected["results"][task].items()
        if isinstance(value, float) and "stderr" not in name
    }
    for metric in found.metrics:
        assert figure(found, metric) == pytest.approx(told[metric.split(" ")[0]], rel=1e-4)


def test_sums_that_are_no_means_are_the_harness_s(
    score: Callable[..., dict[str, Scores]],
) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    mcc = score("cola")["harness.cola"]
    assert mcc.metrics == {"mcc": "matthews"}
    pairs = [(gold, found) for found, gold in mcc.numbers["mcc"]]
    assert figure(mcc, "mcc") == pytest.approx(metrics.matthews_corrcoef(pairs))
    f1 = score("mrpc")["harness.mrpc"]
    assert f1.metrics == {"acc": "mean", "f1": "binary-f1"}
    pairs = [(gold, found) for found, gold in f1.numbers["f1"]]
    assert figure(f1, "f1") == pytest.approx(metrics.f1_score(pairs))


def test_items_have_names_that_come_again(score: Callable[..., dict[str, Scores]]) -> None:
    first, again = (score("sst2")["harness.sst2"] for _ in range(2))
    assert first.ids == again.ids
    assert len(set(first.ids)) == len(SMALL["sst2"])
    assert np.array_equal(first.numbers["acc"], again.numbers["acc"])
    assert len(score("sst2", limit=5)["harness.sst2"].ids) == 5


def test_examples_are_put_before_the_question(score: Callable[..., dict[str, Scores]]) -> None:
    assert score("sst2", settings={"num_fewshot": 2})["harness.sst2"].metrics == {"acc": "mean"}


def test_rolling_texts_are_counted_in_bytes(score: Callable[..., dict[str, Scores]]) -> None:
    found = score("wikitext")["harness.wikitext"]
    assert found.metrics["bits_per_byte"] == "bits-per-byte"
    sizes = [len(row["page"].encode()) for row in SMALL["wikitext"]]
    assert found.numbers["bits_per_byte"][:, 1].tolist() == pytest.approx(sizes, rel=0.1)
    assert 0 < figure(found, "bits_per_byte") < math.inf


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("nothing", None, "the harness has no task nothing"),
        ("sst2", "no json", r"validation\.jsonl, line 1: no JSON"),
        ("sst2", "[1]", "line 1: expected an object"),
        ("sst2", '{"text": "a"}', "is not what sst2 expects"),
        ("sst2", "[" * 100_000, "line 1: no JSON"),
        ("sst2", " ", "has no rows"),
        ("sst2", r'{"sentence": "\ud800", "label": 0}', "rows are not alike, or not what a table"),
        ("sst2", '{"sentence": "a", "label": 99999999999999999999}', "not what a table holds"),
        ("humaneval", None, "runs programs without a sandbox"),
        ("cola", None, "has no file such as"),
        ("gsm8k", "{}", "takes its 5 examples"),
    ],
)
def test_what_can_not_be_asked_is_said(
    tmp_path: Path, name: str, damage: str | None, message: str
) -> None:
    if damage:
        (tmp_path / name).mkdir()
        split = "test" if name in TEST_SPLIT else "validation"
        (tmp_path / name / f"{split}.jsonl").write_text(f"{damage}\n")
    with pytest.raises(PanthalassaError, match=message):
        open_tasks(name, open_storage(str(tmp_path)))


@pytest.mark.parametrize("label", [2, -1, None, "yes"])
def test_a_right_answer_that_is_no_choice_is_no_wrong_answer_of_the_model(
    model: Path, tmp_path: Path, label: object
) -> None:
    from panthalassa.evaluate.harness import HarnessModel, run

    (tmp_path / "sst2").mkdir()
    rows = [{"idx": n, "sentence": "a", "label": label} for n in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "sst2" / "validation.jsonl").write_text(lines)
    asked = [Asked(name="harness:sst2", data=str(tmp_path))]
    with pytest.raises(PanthalassaError, match=f"{tmp_path}/sst2") as refused:
        list(run(asked, HarnessModel(lambda requests: []), print))
    assert "\n" not in str(refused.value)


def test_what_a_task_draws_does_not_depend_on_those_before_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panthalassa.evaluate import harness

    drawn: list[float] = []

    def evaluate(_: object, asked: dict[str, Any], **__: object) -> dict[str, Any]:
        drawn.append(random.random())
        return {"samples": {name: [] for name in asked["tasks"]}}

    monkeypatch.setattr(harness, "evaluate", evaluate)
    monkeypatch.setattr(harness, "_scores", lambda *_: None)
    tasks = [Asked(name=f"harness:{name}", data=str(data)) for name in ("sst2", "cola", "mrpc")]
    list(harness.run(tasks, harness.HarnessModel(lambda requests: []), print))
    assert len(drawn) == len(tasks)
    assert len(set(drawn)) == 1


def test_a_group_has_its_tasks_and_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    languages = "ar bg de el en es fr hi ru sw th tr ur vi zh"
    names = [f"xnli_{language}" for language in languages.split()]
    for name in names:
        (tmp_path / name).mkdir()
        pq.write_table(
            pa.Table.from_pylist(SMALL["xnli_en"]), tmp_path / name / "validation.parquet"
        )
    found = open_tasks("xnli", open_storage(str(tmp_path)))
    assert set(found) == set(names)
