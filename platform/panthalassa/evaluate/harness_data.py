"""Local files in the place of the data sets that tasks of the LM Evaluation Harness name.

A task's prompts, metrics and sums are the harness's own (its YAML); its rows come from
`FOLDER/TASK/SPLIT.jsonl` or `.parquet`, with the columns of the data set that it names. Nothing is
downloaded, and no code but the harness's is run.
"""

import json
import os
import random
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.storage import Storage

SPLITS = ("train", "validation", "test", "dev")
MOST_BYTES = 1 << 30
"""Of a file."""
SEED = 1234
"""Of the harness, for the choice of examples."""
UNEXPECTED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TemplateError,
    TypeError,
    ValueError,
)
"""What the harness raises over rows that are not as it expects them."""


def offline() -> None:
    """Let the harness's libraries ask nobody. Call it before they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[name] = "1"


def open_tasks(name: str, data: Storage, shots: int | None = None) -> dict[str, Any]:
    """The task of the harness, or those of the group or tag, by name, over the files below `data`.

    shots: examples before each question, if not as many as the task has. Raises ConfigError for an
    unknown task, one that is no YAML or runs programs, and PanthalassaError for files that are missing
    or not as the task expects them.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(_folder_of(name)))
    return {leaf: _task(leaf, data.below(leaf), shots, manager) for leaf in _leaves(name, manager)}


def _folder_of(name: str) -> Path:
    """The folder of the harness that has all files about it: to read all 14,000 takes a minute."""
    import lm_eval.tasks

    root, quoted = Path(lm_eval.tasks.__file__).parent, re.escape(name).encode()
    defined = re.compile(rb"^(task|group):\s*%b\s*$" % quoted, re.MULTILINE)
    tagged = re.compile(rb"^(tag:\s*|\s*-\s+)%b\s*$" % quoted, re.MULTILINE)
    texts = {path: path.read_bytes() for path in root.rglob("*.yaml")}
    for pattern in (defined, tagged):
        if found := [path.parent for path, text in texts.items() if pattern.search(text)]:
            return Path(os.path.commonpath(found))
    raise ConfigError(f"tasks: the harness has no task {name}: `lm-eval ls tasks` lists them")


def _leaves(name: str, manager: Any) -> Iterator[str]:
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(name)
    if entry is None:
        raise ConfigError(f"tasks: the harness has no task {name}: `lm-eval ls tasks` lists them")
    kind = entry.kind.name
    if kind == "TASK":
        yield name
        return
    members = sorted(entry.tags or ()) if kind == "TAG" else []
    if kind == "GROUP" and entry.yaml_path:
        members = load_yaml(entry.yaml_path, resolve_func=False).get("task", [])
    if not members or not all(isinstance(member, str) for member in members):
        raise ConfigError(
            f"tasks: {name} of the harness is not described by YAML alone: name single tasks that are"
        )
    for member in members:
        yield from _leaves(member, manager)


def _task(name: str, folder: Storage, shots: int | None, manager: Any) -> Any:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file = manager.task_index[name].yaml_path
    if load_yaml(file, resolve_func=False).get("unsafe_code"):
        raise ConfigError(f"tasks: {name} of the harness runs programs without a sandbox: not run")
    config = dict(load_yaml(file, resolve_func=True))
    splits = _splits(folder)
    config["num_fewshot"] = config.get("num_fewshot") or 0 if shots is None else shots
    for key in ("training_split", "fewshot_split"):
        if (split := config.get(key)) and split not in splits:
            if config["num_fewshot"]:
                raise PanthalassaError(
                    f"{folder.uri} has no split {split}, from which {name} takes its "
                    f"{config['num_fewshot']} examples: add it, or say num_fewshot: 0"
                )
            del config[key]
    for key in ("tag", "group", "task_list", "dataset_kwargs"):
        config.pop(key, None)
    config["custom_dataset"] = lambda **_: splits
    config["metadata"] = dict(config.get("metadata") or {})
    wanted = config.get("test_split") or config.get("validation_split")
    if wanted not in splits:
        raise PanthalassaError(f"{folder.uri} has no split {wanted}, which {name} asks about")
    seed()
    try:
        return ConfigurableTask(config=config)
    except UNEXPECTED as error:
        raise unexpected(name, folder, error) from error


def check_answers(name: str, task: Any, folder: Storage, limit: int | None) -> None:
    """Raises PanthalassaError where the right answer of a multiple choice is none of the choices, which
    the harness counts as a wrong answer of the model."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, row in enumerate(islice(task.eval_docs, limit), 1):
        choices = task.doc_to_choice(row)
        right = task.doc_to_text(row) if task.multiple_input else task.doc_to_target(row)
        for each in right if isinstance(right, list) else [right]:
            known = 0 <= each < len(choices) if isinstance(each, int) else each in choices
            if not known:
                raise PanthalassaError(
                    f"{folder.uri}, row {number}: the right answer of {name} is {str(each)[:40]!r}, and "
                    f"there are {len(choices)} choices"
                )


def seed() -> None:
    """Some tasks shuffle their choices, when they are opened or asked: always alike."""
    random.seed(0)
    np.random.seed(SEED)


def unexpected(name: str, folder: Storage, error: Exception) -> PanthalassaError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return PanthalassaError(
        f"{folder.uri} is not what {name} expects ({reason}): its columns are those of the data set "
        "that the harness's task names"
    )


def _splits(folder: Storage) -> Any:
    from datasets import Dataset, DatasetDict

    found = {}
    for split in SPLITS:
        for extension, read in (("jsonl", _from_json), ("parquet", _from_parquet)):
            if folder.exists(file := f"{split}.{extension}"):
                if folder.size(file) > MOST_BYTES:
                    raise PanthalassaError(
                        f"{folder.uri}/{file} has more than {MOST_BYTES >> 30} GiB"
                    )
                found[split] = Dataset(read(folder.read(file), f"{folder.uri}/{file}"))
    if not found:
        raise PanthalassaError(f"{folder.uri} has no file such as validation.jsonl or test.parquet")
    return DatasetDict(found)


def _from_json(data: bytes, place: str) -> pa.Table:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PanthalassaError(f"{place}, line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise PanthalassaError(f"{place}, line {number}: expected an object")
        rows.append(row)
    if not rows:
        raise PanthalassaError(f"{place} has no rows")
    try:
        return pa.Table.from_pylist(rows)
    except (pa.ArrowException, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise PanthalassaError(
            f"{place}: rows are not alike, or not what a table holds: {error}"
        ) from error


def _from_parquet(data: bytes, place: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise PanthalassaError(f"{place} is no Parquet: {error}") from error
    if not table.num_rows:
        raise PanthalassaError(f"{place} has no rows")
    return table
