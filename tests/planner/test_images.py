"""How many images a run sees, and how many the fullest rank has."""

import numpy as np
import pytest

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import Images, Manifest, Shard
from panthalassa.planner.images import on_the_fullest, trained_on

TREE = {
    "run": {"name": "seen"},
    "corpus": {"directory": "nowhere"},
    "model": {"preset": "laptop-vision"},
    "train": {"steps": 100, "global_batch": 8, "micro_batch": 4, "sequence_length": 64},
}


def manifest(**images: int) -> Manifest:
    """Domains of 32 rows with so many images each."""
    shards = [
        Shard(
            path=f"{name}.parquet",
            domain=name,
            split="train",
            rows=32,
            tokens=2048,
            images=number or None,
            row_groups=(32,),
            size=1,
            sha256="0" * 64,
        )
        for name, number in images.items()
    ]
    return Manifest(
        images=Images(size=64, tokens=16),
        sequence_length=64,
        vocabulary_size=8192,
        bos=0,
        eos=1,
        tokenizer_sha256="",
        documents={},
        characters={},
        text_bytes={},
        unigram_loss=1.0,
        shards=shards,
    )


def config(weights: dict[str, float]) -> Config:
    return build({**TREE, "stream": {"weights": weights}}, [], "test", Config)


def test_images_of_a_run_are_counted_by_its_mixture() -> None:
    corpus = manifest(text=0, one=32, two=64)
    seen = trained_on(corpus, config({"text": 2.0, "one": 1.0, "two": 1.0}))
    assert seen.image_samples == pytest.approx(0.5, abs=0.01)
    assert seen.images_per_sample == pytest.approx(1.5, abs=0.01)
    none = trained_on(corpus, config({"text": 1.0}))
    assert none.image_samples == 0


def test_the_fullest_rank_is_that_of_drawn_steps() -> None:
    draw = np.random.default_rng(1)
    for samples, share, ranks in ((4, 0.1, 512), (8, 0.5, 16), (64, 0.02, 100)):
        drawn = draw.binomial(samples, share, size=(2000, ranks)).max(1)
        assert on_the_fullest(samples, share, ranks) == np.median(drawn)
    assert on_the_fullest(4, 0.1, 1) == 0.4, "alone, it has the mean"
