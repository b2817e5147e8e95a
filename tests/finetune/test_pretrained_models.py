"""Models of other makers, whole: from their folder to chats, figures and an export, on real workers."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from llama import load_llama, save_llama, transformers
from pretrained import LAYOUTS, Files, llama_2, llama_3, qwen_2
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config
from panthalassa.corpus.manifest import read_manifest
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.corpus.verify import verify
from panthalassa.errors import ChatError, ConfigError, CorpusError
from panthalassa.evaluate.answering import Answerer
from panthalassa.evaluate.results import read_results
from panthalassa.evaluate.task import Generation, Likelihood, Request, Rolling
from panthalassa.exchange.base import tokenizer_of
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import open_model
from panthalassa.finetune.chat import encode_question
from panthalassa.finetune.config import load
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.finetune.run import finetune
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run
from panthalassa.train.events import Event, Step

CPU = torch.device("cpu")
WORDS = ["kate", "mori", "suna", "lope"]
Write = Callable[..., Path]


def ignore(_: Event | str) -> None:
    pass


def save(folder: Path, files: Files, **shape: Any) -> Path:
    """A small random model with these files, whose vocabulary is padded."""
    save_llama(folder, vocab_size=528, num_key_value_heads=2, num_hidden_layers=2, **shape)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def examples(objective: str) -> list[dict[str, str]]:
    """The answer to a word is the word again."""
    chance = random.Random(4)
    found = []
    for number in range(120):
        word, other = chance.sample(WORDS, 2)
        prompt = f"{word} {number}"
        answers = {"chosen": word, "rejected": other} if objective == "dpo" else {"answer": word}
        found.append({"prompt": prompt, **answers})
    return found


@pytest.fixture
def tuning(ray_cluster: str, write_lines: Write, tmp_path: Path) -> Callable[..., Config]:
    """tuning("sft", start, "train.steps=5", …) -> the configuration of a fine-tuning."""

    def configure(objective: str, start: Path, *overrides: str) -> Config:
        tree: dict[str, Any] = {
            "run": {"name": "tuned", "directory": str(tmp_path / "runs")},
            "finetune": {"start": str(start), "objective": objective},
            "corpus": {
                "directory": str(tmp_path / f"corpus-{objective}"),
                "sources": [str(write_lines(f"{objective}.jsonl", examples(objective)))],
                "sequence_length": 64,
                "rows_per_group": 4,
            },
            "train": {
                "steps": 12,
                "global_batch": 8,
                "micro_batch": 4,
                "sequence_length": 64,
                "optimizer": {"learning_rate": 3e-3},
                "schedule": {"warmup_steps": 2},
            },
            "checkpoint": {"every": 6},
            "evaluation": {
                "every": 6,
                "samples": 8,
                "prompts": ["kate 7"],
                "sampling_temperature": 0,
            },
            "cluster": {"workers": 2, "cpus_per_worker": 0.5},
        }
        path = tmp_path / "tuning.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load(path, list(overrides))

    return configure


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def chat_ids(theirs: Any, text: str) -> list[int]:
    chat = [{"role": "user", "content": text}]
    return list(theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def test_a_folder_is_tuned_stopped_gone_on_with_audited_asked_evaluated_and_exported(
    tuning: Callable[..., Config], tmp_path: Path
) -> None:
    files = llama_3()
    start = save(tmp_path / "model", files)

    def stop(event: Event) -> None:
        if isinstance(event, Step):
            stopping.set()

    stopping = threading.Event()
    length = "train.steps=200", "checkpoint.every=100"  # far more steps than a stop takes
    first = finetune(tuning("sft", start, *length), stop, stopping=stopping)
    assert first.history.ended is not None
    assert first.history.ended.interrupted
    (start / "tokenizer.json").unlink()
    second = finetune(tuning("sft", start, *length), ignore)
    held_out = [found.loss for found in (*first.history.evaluations, *second.history.evaluations)]
    assert held_out[-1] < held_out[0] * 0.8
    run = open_storage(str(tmp_path / "runs" / "tuned"))
    report = audit_run(run)
    assert report.passed, report.problems

    *_, told = second.history.texts
    limit = ("--max-tokens", "16", "--temperature", "0", "--chat")
    said = command("generate", run.uri, "kate 7", *limit).removesuffix("\n")
    assert told.text.startswith(said)

    export(run, open_storage(str(tmp_path / "exported")), ignore)
    exported = tmp_path / "exported"
    for name, data in files.items():
        assert name == "generation_config.json" or (exported / name).read_bytes() == data
    assert command("generate", str(exported), "kate 7", *limit).removesuffix("\n") == said
    tokenizer = transformers().AutoTokenizer.from_pretrained(exported)
    theirs, ours = load_llama(exported), open_model(run, CPU)
    ids = chat_ids(tokenizer, "kate 7")
    assert ids == encode_question(ours.tokenizer, "kate 7")
    tokens = torch.tensor([ids])
    with torch.no_grad():
        found = ours.model(tokens, torch.zeros_like(tokens))
        torch.testing.assert_close(found, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == list(ours.tokenizer.ends)
    assert theirs.generation_config.temperature == 0.6
    there = theirs.generate(tokens, max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert tokenizer.decode(there, skip_special_tokens=True) == said

    evaluation = tmp_path / "evaluate.yaml"
    (tmp_path / "choices").mkdir()
    rows = [
        {"prompt": f"{word} 200", "choices": WORDS, "answer": n} for n, word in enumerate(WORDS)
    ]
    (tmp_path / "choices" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tree = {
        "model": run.uri,
        "output": str(tmp_path / "figures"),
        "tasks": [{"name": "choices", "data": str(tmp_path / "choices")}],
        "chat": True,
        "cluster": {"workers": 1, "cpus_per_worker": 0.5},
    }
    evaluation.write_text(yaml.safe_dump(tree))
    command("evaluate", str(evaluation))
    results = read_results(open_storage(str(tmp_path / "figures")))
    assert results.tasks["choices"].metrics["accuracy"].whole.n == 4


def test_an_imported_run_without_bos_learns_preferences_with_adapters(
    tuning: Callable[..., Config], tmp_path: Path
) -> None:
    start = save(tmp_path / "model", qwen_2(), tie_word_embeddings=True)
    import_model(open_storage(str(start)), open_storage(str(tmp_path / "imported")), ignore)
    given = "finetune.lora={rank: 4}", "finetune.beta=1.0", "train.optimizer.learning_rate=1e-2"
    given = *given, "corpus.sequence_length=160", "train.sequence_length=160"
    outcome = finetune(tuning("dpo", tmp_path / "imported", *given), ignore)
    losses = [found.loss for found in outcome.history.evaluations]
    assert losses[-1] < losses[0] * 0.95
    run = open_storage(str(tmp_path / "runs" / "tuned"))
    assert audit_run(run).passed
    exported = tmp_path / "exported"
    export(run, open_storage(str(exported)), ignore)
    config = json.loads((exported / "config.json").read_text())
    ours = open_model(run, CPU).tokenizer
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, ours.eos)
    tokenizer = transformers().AutoTokenizer.from_pretrained(exported)
    assert chat_ids(tokenizer, "kate 7") == encode_question(ours, "kate 7")
    with torch.no_grad():
        logits = load_llama(exported)(torch.tensor([chat_ids(tokenizer, "kate 7")])).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_and_its_import_answer_all_kinds_of_requests_as_transformers(
    layout: str, tmp_path: Path
) -> None:
    save(tmp_path / "model", LAYOUTS[layout]())
    import_model(open_storage(str(tmp_path / "model")), open_storage(str(tmp_path / "run")), ignore)
    requests: list[Request] = [
        Likelihood("the sea is", " slow"),
        Likelihood("", "the sea"),
        Rolling("the sea is deep. 海很深"),
        Generation("the sea", stop=("\n",), new_tokens=8),
        Generation("the sea " * 40, stop=(), new_tokens=8),
    ]
    answers = []
    for place in ("model", "run"):
        opened = open_model(open_storage(str(tmp_path / place)), CPU)
        for chat in (False, True):
            answerer = Answerer(opened.model, opened.tokenizer, 64, 512, chat)
            answers.append(answerer.answers(requests))
            assert answerer.cut(requests) == [4]
    assert answers[:2] == answers[2:]

    tokenizer = transformers().AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = load_llama(tmp_path / "model")
    text = "the sea is deep. 海很深"
    first = tokenizer.bos_token_id or tokenizer.eos_token_id
    ids = torch.tensor([[first, *tokenizer.encode(text, add_special_tokens=False)]])
    with torch.no_grad():
        logs = torch.log_softmax(theirs(ids).logits[0, :-1].double(), -1)
    nats = float(logs.gather(1, ids[0, 1:, None]).sum())
    assert answers[0][2].nats == pytest.approx(nats, abs=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_continuation_goes_on_with_the_words_of_its_prompt(layout: str, tmp_path: Path) -> None:
    """Prompt and continuation together are the text of their ids."""
    model = save(tmp_path / "model", LAYOUTS[layout]())
    said = command("generate", str(model), "the sea", "--max-tokens", "12", "--temperature", "0")
    tokenizer = transformers().AutoTokenizer.from_pretrained(model)
    ids = torch.tensor([tokenizer.encode("the sea")])
    whole = load_llama(model).generate(ids, max_new_tokens=12, do_sample=False)[0]
    text = tokenizer.decode(whole, skip_special_tokens=True)
    assert "the sea" + said.removesuffix("\n") == text or "\ufffd" in text


def test_the_corpus_of_chats_keeps_all_of_the_tokenizer_and_is_verified(
    write_lines: Write, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", llama_2(chat_template=None))
    tokenizer = tokenizer_of(open_storage(str(folder)))
    settings = settings_of(write_lines("a.jsonl", examples("sft")))
    manifest = prepare_chats(settings, tokenizer, "sft", ignore)
    corpus = open_storage(settings.directory)
    assert manifest == read_manifest(corpus)
    assert set(manifest.tokenizer_files) == {
        *("tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    }
    assert verify(corpus).problems == []
    for same in (tokenizer, read_tokenizer(corpus, manifest)):
        assert prepare_chats(settings, same, "sft", ignore) == manifest
    (Path(corpus.root) / "chat_template.jinja").write_text("{{ bos_token }}")
    assert "chat_template.jinja is corrupt" in verify(corpus).problems[0]
    other = tokenizer_of(open_storage(str(save(tmp_path / "other", llama_2()))))
    with pytest.raises(CorpusError, match="other sources or settings"):
        prepare_chats(settings, other, "sft", ignore)


def test_examples_that_a_template_refuses_are_counted_and_named(
    write_lines: Write, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(open_storage(str(save(tmp_path / "model", llama_2()))))
    records = [*examples("sft"), {"system": "be slow", "prompt": "sea", "answer": "tide"}]
    settings = settings_of(write_lines("a.jsonl", records), max_bad_share=0.02)
    told: list[str] = []
    manifest = prepare_chats(settings, tokenizer, "sft", told.append)
    assert sum(manifest.documents.values()) == 120
    assert "1 of 121 records" in " ".join(told)
    assert "refuses this chat: roles must alternate" in " ".join(told)
    again = settings_of(tmp_path / "a.jsonl", directory=f"{tmp_path}/b", max_bad_share=0)
    with pytest.raises(CorpusError, match="refuses this chat"):
        prepare_chats(again, tokenizer, "sft", ignore)


def refusal(files: Files, folder: Path, *gone: str) -> str:
    save(folder, files)
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ConfigError) as refused:
        tokenizer_of(open_storage(str(folder)))
    return str(refused.value)


def test_what_can_not_be_tuned_is_named_with_what_to_do(
    write_lines: Write, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    sentencepiece = {**llama_2(), "tokenizer.model": b"x"}
    told = refusal(sentencepiece, tmp_path / "a", "tokenizer.json")
    assert "tokenizer.json is missing: tokenizer.model alone can not be read" in told
    assert "save_pretrained" in told
    told = refusal(llama_3(pad_token="<pad>"), tmp_path / "b")
    assert "pad_token is '<pad>', and tokenizer.json has no such token" in told
    save_llama(tmp_path / "c", vocab_size=320)
    for name, data in llama_3().items():
        (tmp_path / "c" / name).write_bytes(data)
    with pytest.raises(ConfigError, match="has 385 tokens, and the model 320"):
        tokenizer_of(open_storage(str(tmp_path / "c")))
    broken = tokenizer_of(
        open_storage(str(save(tmp_path / "d", llama_3(chat_template="{% for %}"))))
    )
    settings = settings_of(write_lines("a.jsonl", examples("sft")))
    with pytest.raises(ChatError, match="its syntax is wrong in line 1"):
        prepare_chats(settings, broken, "sft", ignore)
    assert not (tmp_path / "corpus").exists()
