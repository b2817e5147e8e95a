"""XGLUE's eleven tasks (Liang et al. 2020) from its own folder, and its averages.

The folder is that of the published archive: `NER/de.test`, `POS/ar.test`, `NC/xglue.nc.de.test`,
`MLQA/MLQA_V1/test/test-context-de-question-de.json`, `XNLI/ar.test`, `PAWSX/de/test_2k.tsv`,
`QADSM/xglue.qadsm.de.test`, `WPR/xglue.wpr.de.test`, `QAM/xglue.qam.de.test`,
`QG/xglue.qg.de.src.test` with `.tgt.`, and `NTG/…` likewise. A group is a language; metrics are those
of the paper and of its evaluation script.

The paper fine-tunes encoders. A decoder is asked: the most likely of a task's labels, in English words
(LABELS), is its answer. NER and POS are generated: a tag for each word, in order; words without one
are O, as in the script, and so wrong in POS. Web pages are ranked by their most likely label, as the
script does it.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, get_args

from pydantic.dataclasses import dataclass

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.metrics import AGGREGATES
from panthalassa.evaluate.results import Average, Scores
from panthalassa.evaluate.task import Answer, Generation, Item, Numbers
from panthalassa.evaluate.tasks import question_answering as qa
from panthalassa.evaluate.tasks.choices import continuations, log_probabilities, most
from panthalassa.evaluate.tasks.ranking import ndcg
from panthalassa.evaluate.tasks.reading import read_lines, read_object, wrong
from panthalassa.evaluate.tasks.settings import CHECKED, FileTask
from panthalassa.evaluate.tasks.tags import entities, read_tags
from panthalassa.evaluate.text_metrics import bleu_counts

LANGUAGES = {
    "ner": "de en es nl",
    "pos": "ar bg de el en es fr hi it nl pl pt ru th tr ur vi zh",
    "nc": "de en es fr ru",
    "mlqa": "ar de en es hi vi zh",
    "xnli": "ar bg de el en es fr hi ru sw th tr ur vi zh",
    "pawsx": "de en es fr",
    "qadsm": "de en fr",
    "wpr": "de en es fr it pt zh",
    "qam": "de en fr",
    "qg": "de en es fr it pt",
    "ntg": "de en es fr ru",
}
PATHS = {
    "ner": "NER/{language}.{split}",
    "pos": "POS/{language}.{split}",
    "mlqa": "MLQA/MLQA_V1/{split}/{split}-context-{language}-question-{language}.json",
    "xnli": "XNLI/{language}.{split}",
    "pawsx": "PAWSX/{language}/{split}_2k.tsv",
    "nc": "NC/xglue.nc.{language}.{split}",
    "qadsm": "QADSM/xglue.qadsm.{language}.{split}",
    "wpr": "WPR/xglue.wpr.{language}.{split}",
    "qam": "QAM/xglue.qam.{language}.{split}",
    "qg": "QG/xglue.qg.{language}.src.{split}",
    "ntg": "NTG/xglue.ntg.{language}.src.{split}",
}
METRICS = {
    "ner": {"f1": "f1-of-counts"},
    "pos": {"accuracy": "ratio"},
    "mlqa": {"f1": "mean", "exact_match": "mean"},
    "wpr": {"ndcg": "mean"},
    "qg": {"bleu": "bleu"},
    "ntg": {"bleu": "bleu"},
}
TOKENS_A_TAG = 8
"""At most."""
ACCURACY = {"accuracy": "mean"}
"""Of all others. The first of a task's metrics is the one that is averaged."""
NC_LABELS = "foodanddrink sports news entertainment health video finance travel lifestyle autos"
CATEGORIES = {"foodanddrink": "food and drink"}
YES = {"0": "no", "1": "yes"}
LABELS: dict[str, dict[str, str]] = {
    "nc": {name: CATEGORIES.get(name, name) for name in NC_LABELS.split()},
    "xnli": {"entailment": "True", "neutral": "Neither", "contradiction": "False"},
    "pawsx": YES,
    "qadsm": {"Bad": "no", "Good": "yes"},
    "wpr": {"0": "bad", "1": "fair", "2": "good", "3": "excellent", "4": "perfect"},
    "qam": YES,
}
PROMPTS = {
    "nc": "{0}\n{1}\n\nCategory:",
    "xnli": "{0}\nQuestion: {1} True, False or Neither?\nAnswer:",
    "pawsx": "{0}\n{1}\nQuestion: Do both sentences mean the same?\nAnswer:",
    "qadsm": "Query: {0}\nAdvertisement: {1}\n{2}\nQuestion: Is it relevant to the query?\nAnswer:",
    "wpr": "Query: {0}\nPage: {1}\n{2}\nQuestion: How well does it answer the query?\nAnswer:",
    "qam": "Question: {0}\nPassage: {1}\nDoes the passage answer the question?\nAnswer:",
    "qg": "{0}\n\nQuestion:",
    "ntg": "{0}\n\nTitle:",
}
Part = Literal["ner", "pos", "nc", "mlqa", "xnli", "pawsx", "qadsm", "wpr", "qam", "qg", "ntg"]
GENERATION = ("qg", "ntg")
AVERAGED = {
    "xglue-understanding": ("ner", "pos", "nc", "mlqa", "xnli", "pawsx", "qadsm", "wpr", "qam"),
    "xglue-generation": GENERATION,
}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Xglue(FileTask):
    """A task in all languages that its folder has."""

    part: Part
    split: Literal["test", "dev"] = "test"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"xglue-{self.part}"

    @property
    def metrics(self) -> Mapping[str, str]:  # type: ignore[override]
        return METRICS.get(self.part, ACCURACY)

    def read(self) -> Iterator[Item]:
        of = {
            "ner": self._tagged,
            "pos": self._tagged,
            "mlqa": self._questions,
            "wpr": self._queries,
        }
        of |= dict.fromkeys(GENERATION, self._texts)
        found = False
        for language in LANGUAGES[self.part].split():
            path = PATHS[self.part].format(language=language, split=self.split)
            if self.data.exists(path):
                found = True
                yield from of.get(self.part, self._labelled)(path, language)
        if not found:
            expected = PATHS[self.part].format(language="en", split=self.split)
            raise PanthalassaError(
                f"evaluation data {self.data.uri} has no file of {self.name}, such as {expected}. "
                "Name the folder that XGLUE's archive unpacks to."
            )

    def score(self, item: Item, answers: Sequence[Answer]) -> dict[str, Numbers]:
        if self.part == "mlqa":
            return qa.question_numbers(item, answers)
        if self.part in GENERATION:
            return {"bleu": bleu_counts(str(answers[0]).strip(), item.target)}
        if self.part in ("ner", "pos"):
            return self._tag_numbers(item.target, str(answers[0]).split())
        nats, labels = log_probabilities(answers), list(LABELS[self.part])
        if self.part == "wpr":
            asked = [
                nats[start : start + len(labels)] for start in range(0, len(nats), len(labels))
            ]
            return {"ndcg": (ndcg([float(most(page)) for page in asked], item.target),)}
        return {"accuracy": (float(labels[most(nats)] == item.target),)}

    def _tag_numbers(self, target: Sequence[str], tags: Sequence[str]) -> dict[str, Numbers]:
        tags = [*tags[: len(target)], *["O"] * (len(target) - len(tags))]
        if self.part == "pos":
            right = sum(tag == wanted for tag, wanted in zip(tags, target, strict=True))
            return {"accuracy": (right, len(target))}
        found, wanted = entities(tags), entities(target)
        return {"f1": (len(found & wanted), len(found), len(wanted))}

    def _tagged(self, path: str, language: str) -> Iterator[Item]:
        for number, words, tags in read_tags(self.data, path):
            asked = Generation(
                f"Sentence: {' '.join(words)}\nTags:", ("\n",), new_tokens=TOKENS_A_TAG * len(words)
            )
            yield Item(f"{path}:{number}", (asked,), tags, language)

    def _questions(self, path: str, language: str) -> Iterator[Item]:
        for name, row in qa.squad_questions(read_object(self.data, path, qa.Squad)):
            yield qa.question_item(f"{path}:{name}", row, language)

    def _labelled(self, path: str, language: str) -> Iterator[Item]:
        for number, fields, label in self._rows(path):
            requests = continuations(
                PROMPTS[self.part].format(*fields), list(LABELS[self.part].values())
            )
            yield Item(f"{path}:{number}", requests, label, language)

    def _queries(self, path: str, language: str) -> Iterator[Item]:
        """A query with its pages, which are rows in a row; one with a single page has no order."""
        for _, rows in groupby(self._rows(path), key=lambda row: row[1][0]):
            pages = list(rows)
            if len(pages) < 2:
                continue
            requests = tuple(
                request
                for _, fields, _ in pages
                for request in continuations(
                    PROMPTS[self.part].format(*fields), list(LABELS[self.part].values())
                )
            )
            ratings = [float(label) for _, _, label in pages]
            yield Item(f"{path}:{pages[0][0]}", requests, ratings, language)

    def _rows(self, path: str) -> Iterator[tuple[int, list[str], str]]:
        """The number, the fields that the prompt needs, and the label, of each line of a table."""
        needed = PROMPTS[self.part].count("{")
        for number, line in read_lines(self.data, path):
            if not line.strip() or (self.part == "pawsx" and number == 1):
                continue
            *fields, label = line.split("\t")
            label = {"contradictory": "contradiction"}.get(label.strip(), label.strip())
            if len(fields) < needed or label not in LABELS[self.part]:
                expected = ", ".join(LABELS[self.part])
                raise wrong(
                    self.data,
                    path,
                    number,
                    f"expected {needed} fields and a label ({expected}) with tabs between, found "
                    f"{len(fields)} and {label[:40]!r}",
                )
            yield number, fields[-needed:], label

    def _texts(self, path: str, language: str) -> Iterator[Item]:
        targets = path.replace(f".src.{self.split}", f".tgt.{self.split}")
        wanted = [line.strip() for _, line in read_lines(self.data, targets)]
        number = 0
        for number, line in read_lines(self.data, path):
            if number > len(wanted):
                break
            asked = Generation(PROMPTS[self.part].format(line.strip()), stop=("\n",))
            yield Item(f"{path}:{number}", (asked,), wanted[number - 1], language)
        if number != len(wanted):
            raise PanthalassaError(
                f"{self.data.uri}: {path} and {targets} have not the same number of lines"
            )


TASKS: dict[str, Any] = {f"xglue-{part}": partial(Xglue, part=part) for part in get_args(Part)}


def xglue_averages(tasks: Mapping[str, Scores]) -> dict[str, Average]:
    """As the paper has them: for each task the mean over its languages, and for XGLUE-Understanding and
    XGLUE-Generation the mean over their tasks, where `missing` has none."""
    means = {f"xglue-{part}": _over_languages(part, tasks) for part in _parts(tasks)}
    absent = missing(tasks)
    for name, parts in AVERAGED.items():
        if name in absent and not absent[name]:
            values = [means[f"xglue-{part}"].value for part in parts]
            means[name] = Average(value=sum(values) / len(values), of=f"{len(parts)} tasks")
    return means


def missing(tasks: Mapping[str, Scores]) -> dict[str, list[str]]:
    """What each average over tasks lacks, if it has one of them: tasks, or languages of a task."""
    found = _parts(tasks)
    return {
        name: [lack for part in parts if (lack := _lack(part, tasks))]
        for name, parts in AVERAGED.items()
        if not found.isdisjoint(parts)
    }


def _parts(tasks: Mapping[str, Scores]) -> set[str]:
    return {part for part in LANGUAGES if f"xglue-{part}" in tasks}


def _lack(part: str, tasks: Mapping[str, Scores]) -> str:
    if (found := tasks.get(f"xglue-{part}")) is None:
        return f"xglue-{part}"
    languages = [name for name in LANGUAGES[part].split() if name not in found.groups]
    return f"xglue-{part} ({', '.join(languages)})" if languages else ""


def _over_languages(part: str, tasks: Mapping[str, Scores]) -> Average:
    found = tasks[f"xglue-{part}"]
    metric, name = next(iter(METRICS.get(part, ACCURACY).items()))
    aggregate, numbers = AGGREGATES[name], found.numbers[metric]
    values = [aggregate(numbers[places]) for places in found.groups_of().values()]
    return Average(
        value=aggregate.scale * sum(values) / len(values),
        of=f"{metric} in {len(values)} of {len(LANGUAGES[part].split())} languages",
    )
