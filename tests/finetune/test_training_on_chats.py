"""The training loop on a corpus of chats: what counts in a step is what counts in its rows."""

from collections.abc import Callable
from pathlib import Path

from panthalassa.config import Config
from panthalassa.exchange.base import tokenizer_of
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.finetune.run import finetune
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run
from panthalassa.train.events import Event, Step
from panthalassa.train.run import Outcome


def test_each_epoch_trains_on_every_answer_token(
    configure: Callable[..., Config],
    undisturbed: Outcome,
    write_lines: Callable[..., Path],
    tmp_path: Path,
) -> None:
    chats = [{"prompt": f"kate {n}?", "answer": f"mori {n}"} for n in range(60)]
    start = f"{undisturbed.config.run.directory}/{undisturbed.config.run.name}"
    overrides = [
        f"finetune.start={start}",
        f"corpus.directory={tmp_path}/corpus",
        f"corpus.sources=[{write_lines('chats.jsonl', chats)}]",
        "corpus.sequence_length=64",
        "corpus.rows_per_group=4",
        "corpus.held_out_share=0.2",
        "parallel.tp_size=2",
        "train.steps=3",
    ]
    corpus = configure(tmp_path, *overrides).corpus
    tokenizer = tokenizer_of(open_storage(start))
    manifest = prepare_chats(corpus, tokenizer, "sft", lambda line: None)
    rows = sum(shard.rows for shard in manifest.split("train"))
    steps: list[Step] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event)

    finetune(configure(tmp_path, *overrides, f"train.global_batch={rows}"), note)
    counted = manifest.counted()["train/chats"]
    assert [step.tokens for step in steps] == [counted] * 3
    report = audit_run(open_storage(str(tmp_path / "runs" / "small")))
    assert report.problems == []
    assert counted < 0.7 * manifest.tokens()["train/chats"]
