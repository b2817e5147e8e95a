"""The training loop on a corpus of chats: what counts in a step is what counts in its rows."""

from collections.abc import Callable
from pathlib import Path

from panthalassa.config import Config, Corpus
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.storage import open_storage
from panthalassa.train.audit import audit_run
from panthalassa.train.events import Event, Step
from panthalassa.train.run import pretrain


def test_each_epoch_trains_on_every_answer_token(
    configure: Callable[..., Config],
    tokenizer: Tokenizer,
    write_lines: Callable[..., Path],
    settings_of: Callable[..., Corpus],
    tmp_path: Path,
) -> None:
    chats = [{"prompt": f"what is {n}?", "answer": f"it is {n}, no more"} for n in range(60)]
    corpus = settings_of(write_lines("chats.jsonl", chats))
    manifest = prepare_chats(corpus, tokenizer.to_bytes(), "sft", lambda line: None)
    rows = sum(shard.rows for shard in manifest.split("train"))
    steps: list[Step] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event)

    config = configure(
        tmp_path,
        f"corpus.directory={corpus.directory}",
        f"model.vocabulary_size={tokenizer.vocabulary_size}",
        f"train.global_batch={rows}",
        "parallel.tp_size=2",
        "train.steps=3",
    )
    pretrain(config, note)
    counted = manifest.counted()["train/chats"]
    assert [step.tokens for step in steps] == [counted] * 3
    report = audit_run(open_storage(str(tmp_path / "runs" / "small")))
    assert report.problems == []
    assert counted < 0.7 * manifest.tokens()["train/chats"]
