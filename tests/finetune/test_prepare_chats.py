"""Chats become a corpus: every answer counts once, nothing else does, and nothing goes unnoticed."""

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3 import BUCKET

from panthalassa.config import Corpus
from panthalassa.corpus.manifest import TOKENIZER, Manifest, Objective, Split, read_manifest
from panthalassa.corpus.show import table
from panthalassa.corpus.tokenizer import Tokenizer, open_tokenizer
from panthalassa.corpus.verify import verify
from panthalassa.errors import CorpusError
from panthalassa.exchange.export import beginning_with_bos
from panthalassa.finetune import prepare as module
from panthalassa.finetune.chat import Message, encode_chat
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.storage import open_storage
from panthalassa.stream.cache import ShardCache
from panthalassa.stream.order import Mixture, Order
from panthalassa.stream.reader import PADDING, Samples, ShardReader

Write = Callable[..., Path]
Settings = Callable[..., Corpus]
Record = dict[str, Any]

LENGTH = 64
WORDS = ["sea", "tide", "moon", "θάλασσα", "海", "def f(x):", "<|im_end|>", "\n"]


def pairs(count: int) -> list[Record]:
    return [{"prompt": f"what is {n}?", "answer": f"it is {n}"} for n in range(count)]


def prepare(
    settings: Corpus, tokenizer: Tokenizer, objective: Objective = "sft"
) -> tuple[Manifest, list[str]]:
    told: list[str] = []
    return prepare_chats(settings, tokenizer, objective, told.append), told


def epoch(manifest: Manifest, directory: str, split: Split) -> Samples:
    """Every sample of a split once."""
    storage = open_storage(directory)
    reader = ShardReader(ShardCache(Path(directory) / "cache", 1 << 20, storage), manifest)
    shards = tuple(shard for shard in manifest.shards if shard.split == split)
    alone = manifest.model_copy(
        update={"shards": [s.model_copy(update={"split": "train"}) for s in shards]}
    )
    order = Order(alone, manifest.sequence_length, Mixture(), seed=1)
    rows = sum(shard.rows for shard in shards)
    reader = ShardReader(reader.cache, alone)
    return reader.fetch(order.locate(np.arange(rows)), manifest.sequence_length)


Said = tuple[tuple[int, bool], ...]
"""A document: its tokens, and whether each counts."""


def documents(samples: Samples) -> Iterator[list[Said]]:
    """Those of each row."""
    for tokens, numbers, counted in zip(
        samples.tokens, samples.documents, samples.counted, strict=True
    ):
        yield [
            tuple(zip(tokens[own].tolist(), counted[own].tolist(), strict=True))
            for number in range(int(numbers.max()) + 1)
            if (own := numbers == number).any()
        ]


def expected(tokenizer: Tokenizer, messages: list[Record], counting_from: int = 0) -> Said:
    """A chat as it should be in a row: to its last token that counts."""
    chat = [Message(role=m["role"], content=m["content"]) for m in messages]
    ids, counted = encode_chat(tokenizer, chat, counting_from)
    said = list(zip(ids.tolist(), counted.tolist(), strict=True))
    while said and not said[-1][1]:
        said.pop()
    return tuple(said)


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
answers = texts.filter(lambda text: text.strip() != "")


def said(role: str, content: str) -> Record:
    return {"role": role, "content": content}


@st.composite
def chats(draw: st.DrawFn) -> list[Record]:
    messages = [said("system", "be slow")] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages += [said("user", draw(texts)), said("assistant", draw(answers))]
    return messages + ([said("user", draw(texts))] if draw(st.booleans()) else [])


def fitting(tokenizer: Tokenizer, messages: list[Record]) -> Said:
    """As many of the answers as fit, found by trying all of them."""
    ends = [n for n, message in enumerate(messages, 1) if message["role"] == "assistant"]
    for end in reversed(ends):
        if len(found := expected(tokenizer, messages[:end])) <= LENGTH:
            return found
    return ()


def prepared_in(folder: str, records: list[Record], **keys: Any) -> Corpus:
    path = Path(folder) / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Corpus.model_validate(
        {
            "directory": f"{folder}/corpus",
            "sources": [str(path)],
            "sequence_length": LENGTH,
            "rows_per_group": 3,
            "rows_per_shard": 5,
            **keys,
        }
    )


@settings(max_examples=25)
@given(st.lists(chats(), min_size=2, max_size=30), st.floats(0.05, 0.45))
def test_every_answer_that_fits_counts_once_and_no_prompt_does(
    tokenizer: Tokenizer, found: list[list[Record]], share: float
) -> None:
    found += [[said("user", f"{n}"), said("assistant", "ok")] for n in (1, 2)]
    whole = {chat for messages in found if (chat := fitting(tokenizer, messages))}
    with tempfile.TemporaryDirectory() as folder:
        records: list[Record] = [{"messages": messages} for messages in found]
        config = prepared_in(folder, records, held_out_share=share)
        manifest, _ = prepare(config, tokenizer)
        rows, targets = [], 0
        splits: tuple[Split, ...] = ("train", "held_out")
        for split in splits:
            samples = epoch(manifest, config.directory, split)
            rows += list(documents(samples))
            targets += samples.targets
            group = f"{split}/chats"
            assert samples.targets == manifest.counted()[group] == samples.counted.sum()
            assert (samples.documents != PADDING).sum() == manifest.tokens()[group]
        assert Counter(chat for row in rows for chat in row) == Counter(whole)
        assert targets == sum(counts for chat in whole for _, counts in chat)
        assert sum(manifest.documents.values()) == len(whole)
        assert all(manifest.documents[f"{split}/chats"] for split in splits)
        assert verify(open_storage(config.directory)).problems == []


@settings(max_examples=25)
@given(st.lists(st.tuples(texts, answers, answers), min_size=2, max_size=30))
def test_pairs_lie_whole_in_a_row_the_chosen_before_the_rejected(
    tokenizer: Tokenizer, found: list[tuple[str, str, str]]
) -> None:
    found = [pair for pair in found if pair[1].strip() != pair[2].strip()]
    found += [("1", "yes", "no"), ("2", "yes", "no")]
    records: list[Record] = [
        {"prompt": asked, "chosen": good, "rejected": [said("assistant", bad)]}
        for asked, good, bad in found
    ]
    whole = set()
    for asked, *both in found:
        pair = [expected(tokenizer, [said("user", asked), said("assistant", one)]) for one in both]
        if sum(map(len, pair)) <= LENGTH:
            whole.add(tuple(pair))
    with tempfile.TemporaryDirectory() as folder:
        config = prepared_in(folder, records)
        manifest, told = prepare(config, tokenizer, "dpo")
        assert manifest.objective == "dpo"
        rows = [
            row
            for split in ("train", "held_out")
            for row in documents(epoch(manifest, config.directory, split))
        ]
    assert all(len(row) % 2 == 0 for row in rows)
    pairs = [pair for row in rows for pair in zip(row[::2], row[1::2], strict=True)]
    assert Counter(pairs) == Counter(whole)
    left = len({(a.strip(), g.strip(), b.strip()) for a, g, b in found}) - len(whole)
    assert (f"of more than {LENGTH} tokens left out" in " ".join(told)) == (left > 0)


def test_the_same_chats_have_the_same_fingerprint_wherever_they_are(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings, tmp_path: Path
) -> None:
    source = write_lines("here/chats/a.jsonl", pairs(40))
    (tmp_path / "there" / "chats").mkdir(parents=True)
    other = shutil.copy(source, tmp_path / "there" / "chats")
    manifest, told = prepare(settings_of(source.parent), tokenizer)
    again, _ = prepare(settings_of(Path(other).parent, directory=str(tmp_path / "two")), tokenizer)
    assert manifest.fingerprint == again.fingerprint
    assert read_manifest(open_storage(str(tmp_path / "corpus"))) == manifest
    assert f"{manifest.documents['held_out/chats']} are held out" in " ".join(told)
    changed, _ = prepare(
        settings_of(source.parent, directory=str(tmp_path / "three"), sequence_length=128),
        tokenizer,
    )
    assert changed.preparation != manifest.preparation


def test_a_second_call_does_nothing_and_what_was_killed_is_gone_on_with(
    tokenizer: Tokenizer,
    write_lines: Write,
    settings_of: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings_of(write_lines("a.jsonl", pairs(40)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tokenizer)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    with pytest.raises(CorpusError, match="an unfinished preparation of other sources"):
        prepare(config, tokenizer, "dpo")
    manifest, _ = prepare(config, tokenizer)
    monkeypatch.setattr(module, "read_examples", interrupt)
    same, told = prepare(config, tokenizer)
    assert same == manifest
    assert told == [f"{config.directory} is already prepared, fingerprint {manifest.fingerprint}"]
    with pytest.raises(CorpusError, match="the corpus of other sources or settings"):
        prepare(settings_of(tmp_path / "a.jsonl", sequence_length=32), tokenizer)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_bad_records_are_counted_and_named_and_too_many_refused(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings, tmp_path: Path
) -> None:
    bad = [
        {"messages": [said("tool", "x")]},
        {"prompt": "x", "answer": " "},
        {"prompt": "x", "answer": "\ud800"},
        {"prompt": "x", "answer": "y", "response": "z"},
        {"messages": [said("user", "x")]},
        {"text": "x"},
        ["x"],
    ]
    source = write_lines("chats/a.jsonl", [*pairs(10), *bad])
    with pytest.raises(CorpusError) as refused:
        prepare(settings_of(source.parent), tokenizer)
    message = str(refused.value)
    assert "7 of 17 records (41 %) can not be read" in message
    assert f"7 in {source} (line 11: `messages.0.role` is 'tool'" in message
    assert "raise corpus.max_bad_share" in message
    manifest, told = prepare(settings_of(source.parent, max_bad_share=0.5), tokenizer)
    assert sum(manifest.documents.values()) == 10
    assert any("7 of 17 records" in line for line in told)


def test_a_chat_that_is_too_long_is_cut_behind_the_last_answer_that_fits_or_left_out(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings
) -> None:
    turns = [said("user", "what is the sea?"), said("assistant", "the sea is deep")]
    records: list[Record] = [{"messages": turns * 9}, {"prompt": "sea " * 90, "answer": "no"}]
    source = write_lines("chats/a.jsonl", [*pairs(5), *records])
    manifest, told = prepare(settings_of(source.parent), tokenizer)
    assert "6 distinct examples, 1 cut behind the last answer that fits" in told[1]
    assert "1 of more than 64 tokens left out (the first is chats/a.jsonl, line 7)" in told[1]
    assert sum(manifest.documents.values()) == 6


def test_files_of_all_kinds_and_their_domains(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings, tmp_path: Path
) -> None:
    root = write_lines("data/code/a.jsonl", pairs(9)).parents[1]
    packed = gzip.compress(
        json.dumps({"prompt": "π", "completion": "3", "language": "el"}).encode()
    )
    (root / "b.jsonl.gz").write_bytes(packed)
    rows = [{"messages": [said("user", "p"), said("assistant", "q")], "domain": "news/el", "id": 7}]
    pq.write_table(pa.Table.from_pylist(rows), root / "c.parquet")
    (root / "readme.txt").write_text("no chats")
    alone = write_lines("alone.jsonl", [{"prompt": "alone", "response": "yes", "system": "s"}])
    manifest, _ = prepare(settings_of(root, alone), tokenizer)
    domains = {group.partition("/")[2] for group in manifest.documents}
    assert {"code", "el", "alone"} < domains
    assert any(domain.startswith("news-el-") for domain in domains)
    assert sum(manifest.documents.values()) == 12
    index = open_storage(str(tmp_path / "corpus"))
    places = {
        row["place"]
        for part in manifest.index
        for row in pq.read_table(index.path(part.path)).to_pylist()
    }
    assert {"code/a.jsonl, line 1", "b.jsonl.gz, line 1", "c.parquet, row 1"} <= places


def test_a_prompt_is_held_out_with_all_of_its_answers(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings
) -> None:
    records = [{"prompt": f"{n % 10}", "answer": f"{n}"} for n in range(60)]
    config = settings_of(write_lines("a.jsonl", records))
    manifest, _ = prepare(config, tokenizer)
    sides = []
    for split in ("train", "held_out"):
        prompts = set()
        for row in documents(epoch(manifest, config.directory, split)):
            prompts |= {tuple(id for id, counts in chat if not counts) for chat in row}
        sides.append(prompts)
    assert len(sides[0] | sides[1]) == 10
    assert sides[0] & sides[1] == set()
    same = settings_of(
        write_lines("b.jsonl", [{"prompt": "x", "answer": f"{n}"} for n in range(9)]),
        directory=f"{config.directory}-2",
    )
    with pytest.raises(CorpusError, match="9 distinct examples: at least two with different"):
        prepare(same, tokenizer)


def test_an_exported_tokenizer_is_the_one_that_was_exported(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings
) -> None:
    """It puts `<|bos|>` in front of texts by itself, which the file says and the vocabulary does not."""
    settings = settings_of(write_lines("chats/a.jsonl", pairs(8)))
    manifest, _ = prepare(settings, tokenizer)
    exported = beginning_with_bos(tokenizer)
    assert exported != tokenizer.to_bytes()
    there = open_tokenizer({TOKENIZER: exported}, "exported")
    again = prepare_chats(settings, there, "sft", lambda line: None)
    assert again.fingerprint == manifest.fingerprint


def test_sources_without_chats_and_a_destination_among_them_are_refused(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings, tmp_path: Path
) -> None:
    write_lines("texts/a.txt", [])
    with pytest.raises(CorpusError, match=r"hold no \.jsonl"):
        prepare(settings_of(tmp_path / "texts"), tokenizer)
    with pytest.raises(CorpusError, match="does not exist"):
        prepare(settings_of(tmp_path / "nowhere.jsonl"), tokenizer)
    source = write_lines("data/a.jsonl", pairs(4))
    with pytest.raises(CorpusError, match="lies inside the source"):
        prepare(settings_of(source.parent, directory=str(source.parent / "corpus")), tokenizer)
    beside = settings_of(source, directory=str(source.parent / "corpus"))
    assert prepare(beside, tokenizer)[0].objective == "sft"


def test_chats_are_read_from_and_written_to_object_storage(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings, s3: str
) -> None:
    source = write_lines("set/chats/a.jsonl", pairs(20))
    here, _ = prepare(settings_of(source.parent), tokenizer)
    bucket = open_storage(f"s3://{BUCKET}/chats-there")
    bucket.write("chats/a.jsonl", source.read_bytes())
    there, _ = prepare(
        settings_of(f"{bucket.uri}/chats", directory=f"{bucket.uri}/corpus"), tokenizer
    )
    one, _ = prepare(
        settings_of(f"{bucket.uri}/chats/a.jsonl", directory=f"{bucket.uri}/one"), tokenizer
    )
    assert there.fingerprint == here.fingerprint
    assert one.documents.keys() == {"train/a", "held_out/a"}
    assert sum(one.documents.values()) == 20
    assert verify(bucket.below("corpus")).problems == []


def test_the_table_of_a_corpus_says_what_counts(
    tokenizer: Tokenizer, write_lines: Write, settings_of: Settings
) -> None:
    manifest, _ = prepare(settings_of(write_lines("a.jsonl", pairs(40))), tokenizer)
    header, row, _ = table(manifest, {"a": 1.0})
    assert header.split()[-3:] == ["counted", "its", "counted"]
    share = manifest.counted()["train/a"] / manifest.tokens()["train/a"]
    assert row.split()[-2] == f"{share:.1%}"
