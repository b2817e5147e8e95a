import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluations import MODEL, right_or_wrong, written
from s3 import BUCKET

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.compare import compare
from panthalassa.evaluate.results import (
    RESULTS,
    read_results,
    read_scores,
    scores,
    write_results,
)
from panthalassa.evaluate.tasks import open_task
from panthalassa.evaluate.telling import explain, parity
from panthalassa.storage import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_what_is_written_is_read_again_with_every_items_numbers(storage: Storage) -> None:
    found = scores(
        {"correct": "mean", "loss": "bits-per-byte"},
        [
            ("a", "de", {"correct": (1.0,), "loss": (3.5, 7.0)}),
            ("b", "", {"correct": (0.0,), "loss": (1, 2)}),
        ],
    )
    results = write_results(storage, MODEL, {"limit": 2}, {"some.task": found})
    assert read_results(storage) == results
    again = read_scores(storage, results, "some.task")
    assert (again.ids, again.groups, again.metrics) == (["a", "b"], ["de", ""], found.metrics)
    np.testing.assert_array_equal(again.numbers["loss"], [[3.5, 7.0], [1.0, 2.0]])
    assert results.tasks["some.task"].metrics["correct"].whole.n == 2
    assert set(results.tasks["some.task"].metrics["correct"].groups) == {"de"}


def test_an_evaluation_lies_in_a_bucket_like_in_a_folder(s3: str) -> None:
    bucket = open_storage(f"s3://{BUCKET}/evaluation")
    written(bucket.below("a"), t=right_or_wrong([True, False, True]))
    written(bucket.below("b"), t=right_or_wrong([True, False, False]))
    results = read_results(bucket.below("a"))
    assert read_scores(bucket.below("a"), results, "t").ids == ["item-0", "item-1", "item-2"]
    (difference,) = compare(bucket.below("a"), bucket.below("b"))
    assert difference.items == 3
    bucket.write("data/x.jsonl", b'{"text": "abc", "language": "en"}\n')
    (item,) = open_task("bits-per-byte", bucket.below("data")).items()
    assert (item.id, item.group) == ("x.jsonl:1", "en")


def test_the_same_numbers_have_the_same_intervals(storage: Storage) -> None:
    task = right_or_wrong([n % 3 == 0 for n in range(50)])
    first, second = written(storage.below("a"), t=task), written(storage.below("b"), t=task)
    assert first.tasks == second.tasks
    figure = first.tasks["t"].metrics["accuracy"].whole
    assert figure.low < figure.value == 17 / 50 < figure.high


def test_a_perplexity_that_is_infinite_is_left_out(storage: Storage) -> None:
    metrics = {"bits": "bits-per-byte", "perplexity": "perplexity"}
    rows = [
        (f"{n}", group, {"bits": (nats, 4.0), "perplexity": (nats, 1.0)})
        for n, (group, nats) in enumerate([("en", 9.0), ("fi", 9000.0)])
    ]
    results = written(storage, t=scores(metrics, rows))
    assert set(results.tasks["t"].metrics) == {"bits"}
    alone = scores({"perplexity": "perplexity"}, [("a", "", {"perplexity": (9000.0, 1.0)})])
    with pytest.raises(PanthalassaError, match="task t: perplexity are infinite"):
        written(storage, t=alone)


@pytest.mark.parametrize("kind", ["no parquet", "no column"])
def test_items_that_are_no_table_of_these_metrics_are_refused(storage: Storage, kind: str) -> None:
    results = written(storage, t=right_or_wrong([True, False]))
    content, path = json.loads(storage.read(RESULTS)), results.tasks["t"].items
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"], "group": [""]}), sink)
    data = b"{}" if kind == "no parquet" else sink.getvalue().to_pybytes()
    storage.write(path, data)
    content["tasks"]["t"]["sha256"] = hashlib.sha256(data).hexdigest()
    storage.write(RESULTS, json.dumps(content).encode())
    with pytest.raises(PanthalassaError, match=r"t\.parquet does not have the numbers of"):
        read_scores(storage, read_results(storage), "t")


def test_changed_items_are_refused_by_name(storage: Storage) -> None:
    results = written(storage, t=right_or_wrong([True, False]))
    path = results.tasks["t"].items
    storage.write(path, storage.read(path)[:-1] + b"\0")
    with pytest.raises(PanthalassaError, match=r"items/t\.parquet is not what was written"):
        read_scores(storage, results, "t")
    storage.delete(path)
    with pytest.raises(PanthalassaError, match=r"items/t\.parquet can not be read"):
        read_scores(storage, results, "t")


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", 2), ("model", {"name": "x", "digest": "short"}), ("surplus", 1), ("tasks", {})],
)
def test_a_changed_results_file_is_refused_with_its_key(
    storage: Storage, key: str, value: object
) -> None:
    written(storage, t=right_or_wrong([True]))
    content = json.loads(storage.read(RESULTS))
    storage.write(RESULTS, json.dumps({**content, key: value}).encode())
    with pytest.raises(PanthalassaError, match=f"is not an evaluation: {key}"):
        read_results(storage)


def test_items_are_only_read_from_their_folder(storage: Storage) -> None:
    written(storage, t=right_or_wrong([True]))
    content = json.loads(storage.read(RESULTS))
    content["tasks"]["t"]["items"] = "items/../../secret.parquet"
    storage.write(RESULTS, json.dumps(content).encode())
    with pytest.raises(PanthalassaError, match=r"tasks\.t\.items"):
        read_results(storage)


def test_a_folder_without_results_is_no_evaluation(storage: Storage) -> None:
    with pytest.raises(PanthalassaError, match="no evaluation at"):
        read_results(storage)


def test_what_can_not_be_summed_up_is_refused_with_the_item() -> None:
    with pytest.raises(PanthalassaError, match="'b': m has the numbers"):
        scores({"m": "mean"}, [("a", "", {"m": (1.0,)}), ("b", "", {"m": (float("nan"),)})])
    with pytest.raises(PanthalassaError, match="'b': m has the numbers"):
        scores({"m": "mean"}, [("a", "", {"m": (1.0,)}), ("b", "", {"m": (1.0, 2.0)})])
    with pytest.raises(PanthalassaError, match="two items have the id 'a'"):
        scores({"m": "mean"}, [("a", "", {"m": (1.0,)})] * 2)


def test_a_task_needs_items_and_a_name_for_its_file(storage: Storage) -> None:
    with pytest.raises(PanthalassaError, match="task t has no items"):
        written(storage, t=right_or_wrong([]))
    with pytest.raises(PanthalassaError, match=r"task .\.\./t"):
        write_results(storage, MODEL, {}, {"../t": right_or_wrong([True])})


def test_the_table_tells_every_value_with_interval_and_items(storage: Storage) -> None:
    results = written(storage, t=right_or_wrong([True, False] * 50))
    assert list(explain(results)) == [("t", "accuracy", "50.0", "40.0 to 60.0", "100", "")]


def test_one_item_has_no_interval_but_that_of_the_binomial(storage: Storage) -> None:
    numbers = {"loss": (3.0, 4.0), "right": (1.0,)}
    found = scores({"loss": "bits-per-byte", "right": "mean"}, [("a", "", numbers)])
    loss, right = explain(written(storage, t=found))
    assert loss[3] == "none: one item"
    assert right[3] == "2.5 to 100.0"


def test_what_the_most_frequent_answer_has_is_kept_and_told(storage: Storage) -> None:
    found = scores({"right": "mean"}, [("a", "", {"right": (1.0,)})], {"right": 0.25})
    results = written(storage, t=found)
    assert read_results(storage).tasks["t"].metrics["right"].baseline == 0.25
    assert read_scores(storage, results, "t").baselines == {"right": 0.25}
    assert next(explain(results))[-1] == "25.0"


def test_results_from_before_there_were_baselines_are_read(storage: Storage) -> None:
    results = written(storage, t=right_or_wrong([True, False]))
    content = json.loads(storage.read(RESULTS))
    del content["averages"], content["tasks"]["t"]["contamination"]
    del content["tasks"]["t"]["metrics"]["accuracy"]["baseline"]
    storage.write(RESULTS, json.dumps(content).encode())
    assert read_results(storage) == results


def test_parity_is_told_beside_english(storage: Storage) -> None:
    rows = [
        (f"{language}-{n}", language, {"bits_per_byte": (nats, 1.0)})
        for language, nats in (("en", 0.8), ("fi", 1.6), ("sv", 0.4))
        for n in range(3)
    ]
    results = written(storage, t=scores({"bits_per_byte": "bits-per-byte"}, rows))
    told = list(parity(results))
    assert [row[2] for row in told] == ["sv", "en", "fi"]  # the lowest first
    assert [row[-1] for row in told] == ["0.50 x en", "1.00 x en", "2.00 x en"]
