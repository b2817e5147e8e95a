"""A small folder of sources in three domains, and the corpus prepared from it."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from panthalassa.config import Corpus
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.storage import Storage, open_storage

TEXTS = {
    "en": "the sea is deep and the tide is slow under a pale moon",
    "el": "η θάλασσα είναι βαθιά και το κύμα αργό κάτω από το φεγγάρι",
    "th": "ทะเล ลึก และ คลื่น ช้า ใต้ แสง จันทร์",
}


def write_sources(folder: Path, documents: int = 30) -> Path:
    """`documents` different texts a domain, of 1 to 300 words; always the same ones."""
    for domain, text in TEXTS.items():
        words, draw = text.split(), random.Random(domain)
        (folder / domain).mkdir(parents=True)
        for index in range(documents):
            drawn = " ".join(draw.choices(words, k=draw.choice([1, 5, 20, 60, 300])))
            (folder / domain / f"{index:03d}.txt").write_text(f"{index}: {drawn}\n")
    return folder


def corpus_config(directory: Path | str, *sources: Path | str, **settings: object) -> Corpus:
    small = {"sequence_length": 64, "vocabulary_size": 352, "rows_per_group": 4, "clean": False}
    return Corpus.model_validate(
        {"directory": str(directory), "sources": list(map(str, sources)), **small, **settings}
    )


@pytest.fixture(scope="session")
def make_sources() -> Callable[..., Path]:
    return write_sources


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Corpus]:
    return corpus_config


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("raw") / "sources")


@pytest.fixture(scope="session")
def prepared(
    ray_cluster: str, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Manifest, Storage]:
    """A finished corpus; tests may read it and must not change it."""
    directory = tmp_path_factory.mktemp("corpora") / "corpus"
    manifest = prepare(corpus_config(directory, sources), lambda line: None)
    return manifest, open_storage(str(directory))
