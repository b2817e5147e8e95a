"""How many images a run sees, and how many the fullest rank has."""

import numpy as np
import pytest
from image_manifests import seen_manifest

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import Manifest
from panthalassa.planner.images import on_the_fullest, trained_on
from panthalassa.stream.curriculum import Phase, planned

TREE = {
    "run": {"name": "seen"},
    "corpus": {"directory": "nowhere"},
    "model": {"preset": "laptop-vision"},
    "train": {"steps": 100, "global_batch": 8, "micro_batch": 4, "sequence_length": 64},
}


def phase(corpus: Manifest, **stream: object) -> Phase:
    """The first of a run."""
    return planned(build({**TREE, "stream": stream}, [], "test", Config), corpus.fingerprint)[0]


def test_images_of_a_run_are_counted_by_its_mixture() -> None:
    corpus = seen_manifest(text=0, one=32, two=64)
    weights = {"text": 2.0, "one": 1.0, "two": 1.0}
    seen = trained_on(corpus, phase(corpus, weights=weights))
    assert seen.image_samples == pytest.approx(0.5, abs=0.01)
    assert seen.images_per_sample == pytest.approx(1.5, abs=0.01)
    asked = trained_on(corpus, phase(corpus, weights=weights, image_share=0.25))
    assert asked.image_samples == pytest.approx(0.25)
    assert asked.images_per_sample == pytest.approx(1.5)
    none = trained_on(corpus, phase(corpus, weights={"text": 1.0}))
    assert none.image_samples == 0


def test_the_fullest_rank_is_that_of_drawn_steps() -> None:
    draw = np.random.default_rng(1)
    for samples, share, ranks in ((4, 0.1, 512), (8, 0.5, 16), (64, 0.02, 100)):
        drawn = draw.binomial(samples, share, size=(2000, ranks)).max(1)
        assert on_the_fullest(samples, share, ranks) == np.median(drawn)
    assert on_the_fullest(4, 0.1, 1) == 0.4, "alone, it has the mean"
