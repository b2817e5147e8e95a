"""Whole fine-tunings on real Ray Train workers, from a run and from an exported folder."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from llama import load_llama
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.errors import CorruptError, PanthalassaError
from panthalassa.exchange.export import export
from panthalassa.exchange.load import open_model
from panthalassa.exchange.weights import newest_good
from panthalassa.finetune.chat import encode_question
from panthalassa.finetune.config import load
from panthalassa.finetune.run import finetune
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.order import evenly
from panthalassa.stream.reader import Samples, ShardReader
from panthalassa.train.audit import audit_run
from panthalassa.train.checkpoint import committed, newest, read_commit
from panthalassa.train.events import Event, Step
from panthalassa.train.micro_batch import micro_batches
from panthalassa.train.run import Outcome

CHANCE = random.Random(4)
CPU = torch.device("cpu")
WORDS = ["kate", "mori", "suna", "lope", "wida", "teka"]


def ignore(event: Event) -> None:
    pass


def ignore_text(text: str) -> None:
    pass


def write_examples(path: Path, objective: str) -> None:
    """The answer to a word is the word again; of a pair, it is better from the first half of WORDS."""
    with path.open("w") as file:
        for number in range(160):
            word, other = CHANCE.sample(WORDS, 2)
            prompt = f"{word} {number}"
            record = {"prompt": prompt, "answer": word}
            if objective == "dpo":
                better, worse = sorted((word, other), key=WORDS.index)
                record = {"prompt": prompt, "chosen": better, "rejected": worse}
            file.write(json.dumps(record) + "\n")


@pytest.fixture
def tuning(undisturbed: Outcome, tmp_path: Path) -> Callable[..., Config]:
    """tuning("sft", "train.steps=5", …) -> the configuration of a fine-tuning of a small run."""
    run = undisturbed.config.run

    def configure(objective: str, *overrides: str, directory: str = "runs") -> Config:
        examples = tmp_path / f"{objective}.jsonl"
        if not examples.exists():
            write_examples(examples, objective)
        tree: dict[str, Any] = {
            "run": {"name": "tuned", "directory": str(tmp_path / directory)},
            "finetune": {
                "start": f"{run.directory}/{run.name}",
                "objective": objective,
                "beta": 1.0,
                "lora": {"rank": 4, "dropout": 0.1},
            },
            "corpus": {
                "directory": str(tmp_path / f"corpus-{objective}"),
                "sources": [str(examples)],
                "sequence_length": 64,
                "rows_per_group": 4,
            },
            "train": {
                "steps": 16,
                "global_batch": 8,
                "micro_batch": 4,
                "sequence_length": 64,
                "optimizer": {"learning_rate": 1e-2},
                "schedule": {"warmup_steps": 2},
            },
            "checkpoint": {"every": 4},
            "evaluation": {"every": 8, "samples": 8},
            "cluster": {"workers": 2, "cpus_per_worker": 0.5},
        }
        path = tmp_path / "tuning.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load(path, list(overrides))

    return configure


def folder_of(outcome: Outcome) -> Storage:
    return open_storage(outcome.config.run.directory).below(outcome.config.run.name)


def losses(*outcomes: Outcome) -> dict[int, float]:
    return {step.step: step.loss for outcome in outcomes for step in outcome.history.steps}


def held_out_samples(outcome: Outcome) -> Samples:
    """All of them, as its evaluations read them."""
    corpus = open_storage(outcome.config.corpus.directory)
    reader = ShardReader(ShardCache(Path("unused"), 1, corpus), outcome.manifest)
    return reader.fetch(evenly(outcome.manifest, "held_out", 64, 1000), 64)


def held_out(outcome: Outcome) -> list[float]:
    return [evaluation.loss for evaluation in outcome.history.evaluations]


def generated(run: Storage, prompt: str, tokens: int, *options: str) -> tuple[str, str]:
    """What the command says greedily, and what it tells beside that."""
    limit = ("--max-tokens", str(tokens), "--temperature", "0")
    result = CliRunner().invoke(app, ["generate", run.uri, prompt, *limit, *options])
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n"), result.stderr


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_adapters_learn_alike_undisturbed_and_stopped_and_gone_on_with_at_another_layout(
    tuning: Callable[..., Config], objective: str
) -> None:
    whole = finetune(tuning(objective), ignore)
    assert held_out(whole)[-1] < held_out(whole)[0] * 0.95

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            stopping.set()

    stopping = threading.Event()
    first = finetune(tuning(objective, directory="other"), stop, stopping=stopping)
    assert first.history.ended is not None
    assert first.history.ended.interrupted
    at_tp_2 = tuning(objective, "parallel.tp_size=2", directory="other")
    second = finetune(at_tp_2, ignore)
    assert losses(first, second) == pytest.approx(losses(whole), abs=1e-4)
    report = audit_run(folder_of(second))
    assert report.passed, report.problems
    assert report.samples == 16 * 8


def test_a_checkpoint_of_adapters_holds_no_other_weights(tuning: Callable[..., Config]) -> None:
    outcome = finetune(tuning("sft", "train.steps=4"), ignore)
    found = newest(folder_of(outcome))
    assert found is not None
    assert found[1].lora is not None
    ready = outcome.history.ready
    assert ready is not None
    assert ready.trained < ready.parameters / 5
    folder = folder_of(outcome)
    size = sum(size for name, size in folder.files() if name.startswith(found[0]))
    assert size < ready.trained * 3 * 4 * 1.5, "a weight and two moments of each"


def test_all_weights_from_an_exported_folder_learn_as_from_its_run_and_need_neither_to_go_on(
    tuning: Callable[..., Config], tmp_path: Path
) -> None:
    from_run = tuning("sft", "finetune.lora=null", "train.optimizer.learning_rate=1e-3")
    assert from_run.finetune is not None
    exported = tmp_path / "exported"
    export(open_storage(from_run.finetune.start), open_storage(str(exported)), print)
    whole = finetune(from_run, ignore)
    assert held_out(whole)[-1] < held_out(whole)[0] * 0.9
    given = "finetune.lora=null", "train.optimizer.learning_rate=1e-3"
    given = *given, f"finetune.start={exported}"
    first = finetune(tuning("sft", *given, "train.steps=8", directory="other"), ignore)
    assert losses(first)[1] == pytest.approx(losses(whole)[1], abs=1e-6)
    for name in ("tokenizer.json", "model.safetensors"):
        (exported / name).unlink()
    second = finetune(tuning("sft", *given, directory="other"), ignore)
    assert second.history.steps[0].step == 9
    assert committed(folder_of(second))[-1] == "step-00000016"


def test_what_can_not_be_tuned_is_refused_in_one_line(
    tuning: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(PanthalassaError, match="nowhere is not there"):
        tuning("sft", f"finetune.start={tmp_path}/nowhere")
    with pytest.raises(PanthalassaError, match="dpo needs finetune"):
        tuning("dpo", "finetune.lora=null")
    finetune(tuning("sft", "train.steps=4"), ignore)
    with pytest.raises(PanthalassaError, match=r"model.lora is .*'rank': 4.* there, .*'rank': 8"):
        finetune(tuning("sft", "finetune.lora.rank=8"), ignore)
    with pytest.raises(PanthalassaError, match=r"model.lora is .* there, None here"):
        finetune(tuning("sft", "finetune.lora=null"), ignore)


def test_adapters_are_merged_in_what_is_exported_asked_and_tuned_again(
    tuning: Callable[..., Config], tmp_path: Path
) -> None:
    """The merged model has the loss that the run measured with its adapters, and gives its answers."""
    asked = "evaluation.prompts=[kate 7, lope 160]", "evaluation.sampling_temperature=0"
    outcome = finetune(tuning("sft", "evaluation.samples=1000", *asked), ignore)
    assert outcome.config.finetune
    run, exported = folder_of(outcome), tmp_path / "exported"
    merged = open_model(run, CPU)
    samples = held_out_samples(outcome)
    [batch] = micro_batches(samples, 1, len(samples), CPU)
    with torch.no_grad():
        loss = merged.model(batch.tokens, batch.documents, batch.labels).item() / samples.targets
    assert loss == pytest.approx(held_out(outcome)[-1], abs=1e-4)

    assert [told.prompt for told in outcome.history.texts] == ["kate 7", "lope 160"]
    for told in outcome.history.texts:
        room = 64 - len(encode_question(merged.tokenizer, told.prompt))
        assert generated(run, told.prompt, min(40, room), "--chat") == (told.text, "")
    assert generated(run, "kate", 3)[1].count("step-00000016 was fine-tuned on chats") == 1
    start = open_storage(outcome.config.finetune.start)
    assert generated(start, "kate", 3)[1] == ""
    assert "was not trained on chats" in generated(start, "kate", 3, "--chat")[1]

    export(run, open_storage(str(exported)), ignore_text)
    theirs = load_llama(exported)
    ids = merged.tokenizer.encode("kate mori suna")
    tokens = torch.tensor([[merged.tokenizer.bos, *ids]])
    with torch.no_grad():
        ours = merged.model(tokens, torch.zeros_like(tokens))
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    card = (exported / "README.md").read_text()
    assert "fine-tuned from" in card
    assert "adapters of rank 4 (LoRA), which are merged" in card

    again = tuning("dpo", f"finetune.start={run.uri}", "train.steps=4", directory="again")
    preferred = finetune(again, ignore)
    with newest_good(folder_of(preferred).below("base"), None, ignore_text) as base:
        for name, weight in merged.model.named_parameters():
            there = torch.cat(list(base.blocks(name, tuple(weight.shape)))).view_as(weight)
            assert torch.equal(weight, there), name

    other = read_commit(run.below("base"), "step-00000000").model_copy(update={"healthy": False})
    run.write("base/step-00000000/checkpoint.json", other.sealed().model_dump_json().encode())
    with pytest.raises(CorruptError, match="not what the adapters"):
        open_model(run, CPU)
    with pytest.raises(PanthalassaError, match=r"model.base is .* there, .* here"):
        finetune(tuning("sft", "train.steps=20"), ignore)
