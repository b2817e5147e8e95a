"""Images go with their samples: into micro-batches, and to the ranks of a tensor-parallel group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images import TOKENS, VISION, MixedRun, cut, mixed, seeing

from panthalassa.config_model import Vision
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import CorpusError
from panthalassa.stream.reader import PADDING, Samples
from panthalassa.train.loop import share
from panthalassa.train.micro_batch import images_of_each, micro_batches

CPU = torch.device("cpu")
READS = Vision.model_validate(VISION)


def samples_of(each: list[int]) -> Samples:
    """Samples with so many images, of which image number n is all of the colour n."""
    length = 8 * TOKENS
    tokens = np.zeros((len(each), length), np.int32)
    for row, number in enumerate(each):
        tokens[row, : number * TOKENS] = Tokenizer.image
    size, total = VISION["image_size"], sum(each)
    colours = np.arange(total, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(colours, (total, size, size, 3))  # not to be written to, as Ray's are
    return Samples(tokens, np.zeros_like(tokens), np.zeros(tokens.shape, bool), images)


@given(st.lists(st.integers(0, 8), max_size=9), st.integers(1, 4), st.integers(0, 2))
def test_each_micro_batch_has_the_images_of_its_samples(
    each: list[int], size: int, empty: int
) -> None:
    samples, count = samples_of(each), -(-len(each) // size) + empty
    batches = micro_batches(samples, count, size, CPU, READS) if count else []
    ends = np.cumsum([0, *each])
    for number, batch in enumerate(batches):
        assert batch.images is not None
        first, end = (min(at, len(each)) for at in (number * size, (number + 1) * size))
        assert batch.images[:, 0, 0, 0].tolist() == list(range(ends[first], ends[end]))
        assert int((batch.tokens == Tokenizer.image).sum()) == len(batch.images) * TOKENS


def test_a_corpus_of_text_has_none() -> None:
    samples = samples_of([0, 0])
    text = Samples(samples.tokens, samples.documents, samples.counted)
    for vision in (READS, None):
        assert [batch.images for batch in micro_batches(text, 2, 1, CPU, vision)] == [None, None]


def test_images_that_do_not_fit_the_tokens_are_refused() -> None:
    good = samples_of([1, 2])
    assert good.images is not None
    broken = good.tokens.copy()
    broken[0, 0], broken[1, -1] = 40, Tokenizer.image  # as many tokens, but no whole image
    for tokens, images in (
        (good.tokens, good.images[:2]),
        (good.tokens, None),
        (good.tokens[:1], good.images),
        (broken, good.images),
    ):
        samples = Samples(tokens, np.zeros_like(tokens), np.zeros(tokens.shape, bool), images)
        with pytest.raises(CorpusError, match="tokens of images, and an image takes 4: check the"):
            images_of_each(samples, READS)


@dataclass(frozen=True)
class Phase:
    sequence_length: int


@dataclass(frozen=True)
class Sharing:
    """As much of a run as sharing looks at."""

    config: Any
    mesh: Any
    partition: Any
    phase: Any


def shared(steps: list[int]) -> list[tuple[Samples, Samples]]:
    """What this rank was sent in each step, and what the first of its group has read."""
    config = seeing("parallel.tp_size=2")
    run = MixedRun(config)
    sharing: Any = Sharing(config, run.mesh, run.partition, Phase(config.train.sequence_length))
    found = []
    for step in steps:
        own = run.samples(step)
        found.append((share(own if run.reads else None, sharing), own))
    return found


def test_the_ranks_of_a_tensor_parallel_group_see_the_same_images(ranks: Any) -> None:
    seen = 0
    for by_step in ranks(4, shared, [0, 1, 2]):
        for found, read in by_step:
            for name in ("tokens", "documents", "counted"):
                assert np.array_equal(getattr(found, name), getattr(read, name)), name
            assert read.images is not None
            if len(read.images) == 0:
                assert found.images is None
            else:
                assert np.array_equal(found.images, read.images)
                seen += len(read.images)
    assert seen


def test_what_is_cut_is_whole() -> None:
    """The batches that other tests compare: none of their images is lost or in two parts."""
    every = mixed(0, seeing())
    parts = [cut(every, slice(row, row + 1)) for row in range(4)]
    assert [len(part.images) for part in parts if part.images is not None] == [0, 0, 1, 3]
    assert (every.documents != PADDING).any()
