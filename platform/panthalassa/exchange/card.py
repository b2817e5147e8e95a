"""The model card: what a model is and what went into it, from its run's own records and nothing else.

Every section comes from one record (the checkpoint's commit, the ledger of samples and the manifest, the
account of energy, the spool). What was not recorded is told as that, never guessed; an evaluation is
there only if one was made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from panthalassa.config_file import flatten
from panthalassa.config_finetune import loss_unit
from panthalassa.config_model import Model
from panthalassa.corpus.manifest import Manifest
from panthalassa.errors import PanthalassaError
from panthalassa.exchange.weights import Weights
from panthalassa.model.safetensors import Entry
from panthalassa.redact import without_secrets
from panthalassa.report.energy import energy_of
from panthalassa.report.headlines import si
from panthalassa.report.languages import COUNTED, Language, languages
from panthalassa.run_config import kept_tree
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import until
from panthalassa.tracking import spool
from panthalassa.train.audit import kept_manifest

Part = TypeVar("Part")

LICENCE = "apache-2.0"
"""Of a model that was trained here, as Hugging Face names it."""
UNTOLD = "Not on record"
OBJECTIVES = {
    "sft": "on answers (supervised fine-tuning)",
    "dpo": "on preferences (DPO), of which it is the reference",
}
"""What a fine-tuning of each kind learned from."""
KEYS = {
    "global batch": "train.global_batch",
    "sequence length": "train.sequence_length",
    "arithmetic": "parallel.precision",
    "learning rate": "train.optimizer.learning_rate",
    "schedule": "train.schedule.kind",
    "seed": "run.seed",
    "ranks, at most": "cluster.workers",
}
"""Of the configuration, that the card tells."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, as tables for people."""

    uri: str
    digest: str
    """The SHA-256 of the commit of the checkpoint that it asked."""
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]
    """The headings and the rows of each."""


def card(
    run: Storage,
    weights: Weights,
    model: Model,
    entries: Sequence[Entry],
    licence: str | None,
    evaluations: Sequence[Evaluation] = (),
) -> str:
    """The content of README.md, for Hugging Face: properties in YAML, then the card."""
    commit, trained = weights.commit, bool(weights.commit.phases)
    name = run.uri.rstrip("/").rpartition("/")[2]
    licence = licence or (LICENCE if trained else None)
    data = _or_reason(lambda: languages(run, commit.step)) if trained else []
    tags = _or_reason(lambda: _tags(run))
    count = sum(entry.size // entry.dtype.itemsize for entry in entries)
    size = sum(entry.size for entry in entries)
    lines = [
        *_properties(licence, data, model),
        f"# {_text(name)}",
        "",
        f"A language model of {count:,} parameters ({size / 1e6:,.1f} MB of weights): {_kind(model)} "
        f"It was written by Panthalassa from the checkpoint `{weights.name}` of the run "
        f"`{_text(name)}` (SHA-256 of its commit `{commit.sha256}`).",
        "",
        "## Shape",
        "",
        *_table(("key", "value"), flatten(model.identity()).items()),
    ]
    if trained:
        lines += ["", "## Training", "", *_training(run, weights, tags)]
        lines += _start(run)
        lines += ["", "## Data by language", "", *_data(run, weights, data)]
    else:
        lines += ["", "The weights were imported; what they were trained on is not on record here."]
    if commit.evaluations or evaluations:
        lines += ["", "## Evaluation", "", *_evaluation(run, weights, evaluations)]
    if trained:
        lines += ["", "## Energy and carbon", "", *_energy(run)]
        lines += ["", "## Hardware", "", _hardware(tags)]
    told = licence or "that of the weights that were imported: see where they came from"
    return "\n".join([*lines, "", "## Licence", "", f"{told}.", ""])


def _kind(model: Model) -> str:
    if not model.vision:
        return "a decoder in the Llama layout, which continues text."
    side, tokens = model.vision.image_size, model.vision.tokens
    return (
        "in the LLaVA layout, a decoder that continues text and images. An image is read as a square "
        f"of {side} × {side} pixels, into which others are fitted with their aspect ratio and padded "
        f"with white, and takes the place of {tokens} tokens, besides one before and one behind it."
    )


def _properties(licence: str | None, data: list[Language] | str, model: Model) -> Iterator[str]:
    yield "---"
    if licence:
        yield f"license: {licence}"
    yield "library_name: transformers"
    yield f"pipeline_tag: {'image-text-to-text' if model.vision else 'text-generation'}"
    found = [] if isinstance(data, str) else sorted(language.name for language in data)
    if codes := [name for name in found if name.isascii() and name.isalpha() and len(name) < 4]:
        yield "language:"
        yield from (f"- '{code}'" for code in codes)  # no would be a truth value
    yield "---"
    yield ""


def _training(run: Storage, weights: Weights, tags: Mapping[str, str] | str) -> Iterator[str]:
    commit = weights.commit
    told = _or_reason(lambda: flatten(kept_tree(run)))
    rows: dict[str, object] = {"steps": f"{commit.step:,}", "samples": f"{commit.samples:,}"}
    if not isinstance(told, str):
        rows |= {what: told.get(key, UNTOLD) for what, key in KEYS.items()}
    for phase in until(commit.phases, commit.step):
        key = f"corpus from step {phase.first_step:,}"
        rows[key] = f"SHA-256 `{phase.corpus}`, {phase.sequence_length} tokens a sample"
    for first, end in commit.passed_over:
        rows[f"left out after step {first:,}"] = f"{end - first:,} steps, by a rollback"
    if not isinstance(tags, str) and "commit" in tags:
        rows["code"] = tags["commit"]
    yield from _table(("", ""), rows.items())


def _data(run: Storage, weights: Weights, data: list[Language] | str) -> Iterator[str]:
    if isinstance(data, str):
        yield f"{UNTOLD}: {_text(data)}"
        return
    total = sum(language.positions for language in data)
    manifest = _or_reason(lambda: kept_manifest(run, weights.commit.phases[-1].corpus))

    def row(found: Language) -> tuple[str, ...]:
        key = f"train/{found.name}"
        known = isinstance(manifest, Manifest) and key in manifest.documents
        return (
            found.name,
            f"{found.positions:,}",
            f"{found.positions / total:.2%}",
            f"{found.epochs:.2f}",
            f"{manifest.documents[key]:,}" if known and not isinstance(manifest, str) else "–",
            f"{manifest.text_bytes[key]:,}" if known and not isinstance(manifest, str) else "–",
        )

    yield f"{si(total)} tokens, padding included, in {len(data)} domains. {COUNTED}"
    yield ""
    heads = ("language", "tokens", "share", "epochs", "documents in the corpus", "bytes of text")
    yield from _table(heads, map(row, data))


def _start(run: Storage) -> Iterator[str]:
    """Of a fine-tuning: with what it began. What that was trained on, its own card tells."""
    told = _or_reason(lambda: kept_tree(run).get("finetune"))
    if not isinstance(told, dict):
        return
    how, lora = "in all of its weights", told.get("lora")
    if isinstance(lora, dict):
        how = (
            f"by adapters of rank {lora.get('rank')} (LoRA), which are merged into the weights here"
        )
    yield ""
    yield (
        f"It was fine-tuned from `{_text(str(told.get('start')))}` "
        f"{OBJECTIVES.get(str(told.get('objective')), UNTOLD)}, {how}. What that model had been trained "
        "on, and what it took, is not part of this card."
    )


def _evaluation(run: Storage, weights: Weights, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    if weights.commit.evaluations:
        last = weights.commit.evaluations[-1]
        tree = _or_reason(lambda: flatten(kept_tree(run)))
        unit = loss_unit(None if isinstance(tree, str) else tree.get("finetune.objective"))
        yield (
            f"Held-out loss {last.loss:.4f} nats a {unit} after step {last.step:,}, over "
            f"{last.tokens:,} tokens of documents that were not trained on."
        )
    if not evaluations:
        yield "No other evaluation is on record."
    for evaluation in evaluations:
        yield ""
        yield f"From `{_text(evaluation.uri)}`, of these very weights:"
        for headings, rows in evaluation.tables:
            yield ""
            yield from _table(headings, rows)


def _energy(run: Storage) -> Iterator[str]:
    asked = _or_reason(lambda: str(flatten(kept_tree(run)).get("energy.source")))
    found = energy_of(run, asked)
    if isinstance(found, str):
        yield _text(found)
        return
    yield "Of the whole run so far, all its commands and what restarts lost included."
    yield ""
    yield from _table(("", ""), found.explained)


def _hardware(tags: Mapping[str, str] | str) -> str:
    if isinstance(tags, str):
        return f"{UNTOLD}: {_text(tags)}"
    return _text(tags.get("hardware", f"{UNTOLD}."))


def _tags(run: Storage) -> dict[str, str]:
    """What the spool tells of the run's nodes and code, the newest of each."""
    found: dict[str, str] = {}
    for record in spool.read(run):
        if record.kind == "tags":
            found |= {key: str(value) for key, value in record.values.items()}
    return found


def _table(heads: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(_text(str(cell).strip()) for cell in row)} |"


def _text(text: str) -> str:
    """As Markdown and HTML show it, on one line, without credentials."""
    escaped = without_secrets(text).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.replace("|", "\\|").split())


def _or_reason(read: Callable[[], Part]) -> Part | str:
    try:
        return read()
    except PanthalassaError as error:
        return str(error)
