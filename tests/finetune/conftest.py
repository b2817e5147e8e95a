"""A vocabulary for chats, and files of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from panthalassa.config import Corpus
from panthalassa.corpus.tokenizer import Tokenizer

TEXTS = [
    "What is the sea? The sea is deep, and the tide is slow. def tide(moon): return moon * 2",
    "Τι είναι η θάλασσα; Η θάλασσα είναι βαθιά και το κύμα αργό.",
    "ทะเลคืออะไร ทะเลลึกและคลื่นช้า",
    "海是什么？海很深，潮水很慢。",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 400)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """write_lines("chats/a.jsonl", records) -> the file of JSON lines below tmp_path."""

    def write(name: str, records: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Corpus]:
    """settings_of(source, …, key=value, …) -> the settings of a corpus in tmp_path/corpus."""

    def settings(*sources: Path | str, **keys: object) -> Corpus:
        small = {"sequence_length": 64, "rows_per_group": 4, "held_out_share": 0.2}
        directory = str(tmp_path / "corpus")
        return Corpus.model_validate(
            {"directory": directory, "sources": list(map(str, sources)), **small, **keys}
        )

    return settings
