import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from answered import knows, scored
from evaluations import MODEL
from hypothesis import given
from hypothesis import strategies as st
from phases import bare_manifest

from panthalassa.corpus.decontaminate import WORDS
from panthalassa.corpus.manifest import MANIFEST, TOKENIZER, Split
from panthalassa.corpus.pack import pack
from panthalassa.corpus.shards import write_shard
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import CorpusError
from panthalassa.evaluate.contamination import (
    Contaminated,
    contaminated,
    passages,
    training_texts,
)
from panthalassa.evaluate.results import read_results, write_results
from panthalassa.evaluate.task import Generation, Item, Likelihood, Rolling, Task
from panthalassa.evaluate.tasks import open_task
from panthalassa.evaluate.telling import contamination, explain, for_card
from panthalassa.storage import Storage, open_storage

TELLING = "the quick brown fox jumps over the lazy dog while seven wise men watch it happily"
OTHER = "nothing of this sentence is anywhere else in what a model has been trained on today"
CHINESE = "北京是中华人民共和国的首都也是全国政治文化和国际交往的中心"


def write_corpus(folder: Path, **texts: Sequence[str]) -> Storage:
    """A corpus with a shard for each split."""
    storage = open_storage(str(folder))
    tokenizer = Tokenizer.train([text for split in texts.values() for text in split], 400)
    shards = []
    splits: dict[str, Split] = {"train": "train", "held_out": "held_out"}
    for name, split in splits.items():
        documents = [tokenizer.encode_document(text) for text in texts.get(name, ["a"])]
        packed = pack(documents, 128, tokenizer.pad).filled()
        shards.append(write_shard(storage, f"{name}/aa/0.parquet", split, "aa", packed, 4))
    storage.write(TOKENIZER, tokenizer.to_bytes())
    manifest = bare_manifest(shards, 128)
    digest = storage.sha256(TOKENIZER)
    storage.write(MANIFEST, manifest.model_copy(update={"tokenizer_sha256": digest}).encode())
    return storage


def questions(folder: Path, *prompts: str) -> Task:
    folder.mkdir()
    rows = [
        {"prompt": prompt, "choices": ["yes", "no"], "answer": n % 2}
        for n, prompt in enumerate(prompts)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task("choices", open_storage(str(folder)))


def look(corpus: Storage, task: Task) -> Contaminated:
    return contaminated(training_texts(corpus), {"choices": task.items()})["choices"]


def test_items_that_training_documents_hold_are_found_and_no_others(tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path / "corpus",
        train=["Some text.", f"Well: {TELLING.upper()}! And more.", f"说：{CHINESE}。"],
        held_out=[OTHER],
    )
    task = questions(tmp_path / "task", f"{TELLING}, they say.", OTHER, "Too short?", CHINESE)
    found = look(corpus, task)
    assert found.ids == {"a.jsonl:1", "a.jsonl:4"}  # what is held out trains nobody
    assert (found.items, found.short) == (4, 1)


def test_metrics_are_kept_and_told_without_them(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", train=[TELLING])
    task = questions(tmp_path / "task", TELLING, OTHER, "Too short?", f"{OTHER} again")
    found, scores = look(corpus, task), scored(task, knows("yes"))
    record = found.record(training_texts(corpus).manifest.fingerprint, scores)
    storage = open_storage(str(tmp_path / "results"))
    write_results(storage, MODEL, {}, {"choices": scores}, {"choices": record})
    results = read_results(storage)
    assert results.tasks["choices"].contamination == record
    first, _ = contamination(results)
    assert first[:5] == ("choices", "1 (25.0 %)", "1", "accuracy", "33.3")
    assert first[-1] == "3"
    assert next(explain(results))[2] == "50.0"
    assert any("33.3" in row for _, rows in for_card(storage).tables for row in rows)


@pytest.mark.parametrize(("trained", "share"), [(OTHER, "0 (0.0 %)"), (TELLING, "1 (100.0 %)")])
def test_where_none_or_all_are_found_no_other_metric_is_told(
    tmp_path: Path, trained: str, share: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", train=[trained])
    task = questions(tmp_path / "task", TELLING)
    scores = scored(task, knows("yes"))
    record = look(corpus, task).record("0" * 64, scores)
    storage = open_storage(str(tmp_path / "results"))
    results = write_results(storage, MODEL, {}, {"choices": scores}, {"choices": record})
    (row,) = contamination(results)
    assert row[1] == share
    assert row[3:] == ("", "", "", "")


words = st.lists(
    st.text("abcdefgh", min_size=2, max_size=6), min_size=WORDS, max_size=WORDS, unique=True
)


@given(words, st.integers(0, 2))
def test_thirteen_words_of_any_kind_of_request_are_found_and_twelve_are_not(
    passage: list[str], kind: int
) -> None:
    whole = " ".join(passage)
    items = [
        Item("likely", (Likelihood(" ".join(passage[:5]), f" {' '.join(passage[5:])}"),)),
        Item("rolling", (Rolling(f"zz {whole} zz"),)),
        Item("generated", (Generation("Say it:"),), whole),
    ]
    sought = passages([Item("other", (Rolling(OTHER),)), items[kind]])

    def find(text: str) -> set[str]:
        hits = sought.find(pa.chunked_array([pa.array([text], pa.large_string())]))
        return {sought.ids[owner] for owner in sought.owners[hits]}

    assert find(f"yy {whole.upper()}, yy") == {items[kind].id}
    assert find(" ".join([*passage[:-1], "xx"])) == set()


def test_a_passage_of_several_items_is_found_for_each() -> None:
    sought = passages([Item(name, (Rolling(TELLING),)) for name in "ab"])
    hits = sought.find(pa.chunked_array([pa.array([TELLING], pa.large_string())]))
    assert {sought.ids[owner] for owner in sought.owners[hits]} == {"a", "b"}


def test_a_rotten_shard_is_no_clean_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", train=[TELLING])
    data = corpus.read("train/aa/0.parquet")
    corpus.write("train/aa/0.parquet", data[:-1] + b"\0")
    with pytest.raises(CorpusError, match=r"train/aa/0\.parquet is not what its hash says"):
        look(corpus, questions(tmp_path / "task", TELLING))
    corpus.delete("train/aa/0.parquet")
    with pytest.raises(CorpusError, match="can not be read"):
        look(corpus, questions(tmp_path / "other", TELLING))
