"""The LM Evaluation Harness over this package's workers, and its results as items with numbers.

The harness (0.4) makes prompts from rows and metrics from answers; requests go to `Engine.answers`.
Of its metrics all are kept whose sum over items has a counterpart in `metrics.AGGREGATES`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs

from panthalassa.config_evaluation import PREFIX, Asked
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate.harness_data import (
    SEED,
    UNEXPECTED,
    check_answers,
    open_tasks,
    seed,
    unexpected,
)
from panthalassa.evaluate.results import Scores, scores
from panthalassa.evaluate.task import (
    Answer,
    Generation,
    Likelihood,
    Likely,
    Numbers,
    Request,
    Rolling,
)
from panthalassa.storage import open_storage

NEW_TOKENS = 256
"""Of tasks that do not say how many."""
Sums = Callable[[Any], Numbers]

SUMS: Mapping[str, tuple[str, Sums]] = {
    "mean": ("mean", lambda item: (float(item),)),
    "matthews_corrcoef": ("matthews", lambda item: (float(item[1]), float(item[0]))),
    "f1": ("binary-f1", lambda item: (float(item[1]), float(item[0]))),
    "perplexity": ("perplexity", lambda item: (-float(item), 1.0)),
    "weighted_perplexity": ("perplexity", lambda item: (-float(item[0]), float(item[1]))),
    "bits_per_byte": ("bits-per-byte", lambda item: (-float(item[0]), float(item[1]))),
}
"""For the harness's name of a sum: that of `metrics.AGGREGATES`, and an item's numbers."""


class HarnessModel(LM):  # type: ignore[misc]
    """What the harness takes for a model."""

    def __init__(self, answers: Callable[[Sequence[Request]], list[Answer]]) -> None:
        super().__init__()
        self._answers = answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        found = self._likely([Likelihood(*request.args) for request in requests])
        return [(answer.nats, answer.greedy) for answer in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        found = self._likely([Rolling(request.args[0]) for request in requests])
        return [answer.nats for answer in found]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked: Counter[Generation] = Counter()
        generations: list[Request] = []
        for request in requests:
            prompt, options = request.args
            first = _generation(prompt, options)
            generations.append(replace(first, sample=asked[first]))
            asked[first] += first.temperature > 0
        return [str(answer) for answer in self._answers(generations)]

    def _likely(self, requests: Sequence[Request]) -> Iterator[Likely]:
        return (answer for answer in self._answers(requests) if isinstance(answer, Likely))


def _generation(prompt: str, options: dict[str, Any]) -> Generation:
    """Raises PanthalassaError for a way to sample that is not known here."""
    known = dict(normalize_gen_kwargs(options, NEW_TOKENS))
    temperature = float(known.pop("temperature", 0.0) or 0.0)
    stop, limit = tuple(known.pop("until", ())), int(known.pop("max_gen_toks"))
    if temperature == 0 and known.pop("do_sample", False):
        temperature = 1.0
    others = {key: value for key, value in known.items() if key != "do_sample"}
    if temperature > 0 and others:
        raise PanthalassaError(
            f"a task of the harness samples with {others}: only temperature is known"
        )
    return Generation(prompt, stop, limit, temperature)


def run(
    asked: Sequence[Asked], model: HarnessModel, tell: Callable[[str], None]
) -> Iterator[tuple[str, Scores]]:
    """The tasks that the harness has under `asked`, as `harness.NAME`, each with its items' numbers.

    Raises PanthalassaError for what it does not have, and data that are not as it expects them.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for entry in asked:
        name = entry.name.removeprefix(PREFIX)
        data = open_storage(entry.data)
        for task_name, task in open_tasks(name, data, _shots(entry)).items():
            folder = data.below(task_name)
            try:
                check_answers(task_name, task, folder, entry.limit)
                samples = _samples(task_name, task, model, entry.limit)
            except UNEXPECTED as error:
                raise unexpected(task_name, folder, error) from error
            yield f"harness.{task_name}", _scores(task_name, task, samples, tell)


def _samples(name: str, task: Any, model: HarnessModel, limit: int | None) -> Any:
    """The items of a task, as the harness logs them."""
    task.set_fewshot_seed(SEED)
    seed()
    found = evaluate(
        model,
        {"tasks": {name: task}, "groups": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        verbosity="ERROR",
    )
    return found["samples"][name]


def _shots(entry: Asked) -> int | None:
    others = set(entry.settings) - {"num_fewshot"}
    shots = entry.settings.get("num_fewshot")
    if others or not isinstance(shots, int | None):
        raise ConfigError(
            f"tasks: {entry.name} has the settings {entry.settings}; there is num_fewshot, a number"
        )
    return shots


def _scores(
    name: str, task: Any, samples: Sequence[Mapping[str, Any]], tell: Callable[[str], None]
) -> Scores:
    """Of a task's items as the harness logs them: one for each item and filter."""
    sums = {metric: _sum_of(task, metric) for metric in samples[0]["metrics"]}
    for metric in [metric for metric, found in sums.items() if found is None]:
        tell(f"{name}: {metric} of the harness has no interval here, and is left out")
    names = sorted({sample["filter"] for sample in samples})
    numbers: dict[str, dict[str, Numbers]] = {}
    metrics: dict[str, str] = {}
    for sample in samples:
        item = f"{sample['doc_id']}-{sample['doc_hash'][:12]}"
        for metric, found in sums.items():
            if found is not None:
                label = metric if len(names) == 1 else f"{metric} ({sample['filter']})"
                metrics[label] = found[0]
                numbers.setdefault(item, {})[label] = found[1](sample[metric])
    if not metrics:
        raise PanthalassaError(f"{name}: none of the harness's metrics has a counterpart here")
    return scores(metrics, ((item, "", row) for item, row in numbers.items()))


def _sum_of(task: Any, metric: str) -> tuple[str, Sums] | None:
    how = task.aggregation().get(metric)
    names = (name for name, function in AGGREGATION_REGISTRY.items() if function is how)
    return next((SUMS[name] for name in names if name in SUMS), None)
