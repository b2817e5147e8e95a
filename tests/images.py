"""Batches of text and images, and a tiny model that reads them.

`mixed` is the global batch of a step: rows of none, one or three images, and now and then a batch of
text alone. `seeing` adds a tower to the configuration of `ranks.tiny`: images of eight pixels that take
four tokens each.
"""

import numpy as np
import torch
import torch.nn.functional as F
from ranks import TinyRun, packed, tiny
from torch import Tensor

from panthalassa.config import Config
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.model.transformer import IGNORED, Transformer
from panthalassa.stream.reader import Samples

VISION = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "layers": 2,
    "heads": 4,
    "ffn_size": 24,
}
TOKENS = 4
"""Of an image."""
ROWS = ((0, 0, 1, 3), (3, 0, 0, 0), (0, 0, 0, 0), (1, 3, 0, 1))
"""Images in each row of a batch: ranks have none while others have some."""


def seeing(*overrides: str) -> Config:
    """A tiny run of a model that reads images."""
    vision = [f"model.vision.{key}={value}" for key, value in VISION.items()]
    return tiny(*vision, *overrides)


def text_alone(step: int, config: Config) -> Samples:
    """A batch in which no token is special."""
    samples = packed(step, config)
    tokens = np.where(samples.tokens < 32, 32, samples.tokens).astype(np.int32)
    return Samples(tokens, samples.documents, samples.counted)


def mixed(step: int, config: Config) -> Samples:
    """The global batch of a step, whose images are one document of their row with the text behind."""
    samples, draw = text_alone(step, config), np.random.default_rng(step + 1000)
    rows = [ROWS[step % len(ROWS)][row % 4] for row in range(len(samples))]
    for row, images in enumerate(rows):
        if images:
            one = [Tokenizer.image_start, *[Tokenizer.image] * TOKENS, Tokenizer.image_end]
            document = np.array([Tokenizer.bos, *one * images, 40, 41 + images, Tokenizer.eos])
            end, length = len(document), config.train.sequence_length
            samples.tokens[row, :end] = document
            samples.tokens[row, end:] = draw.integers(32, 64, length - end)
            samples.documents[row] = np.where(np.arange(length) < end, 0, 1)
            samples.counted[row] = True
            samples.counted[row, : end - 3] = False
    size = VISION["image_size"]
    images = draw.integers(0, 256, (sum(rows), size, size, 3), dtype=np.uint8)
    return Samples(samples.tokens, samples.documents, samples.counted, images)


def cut(samples: Samples, part: slice) -> Samples:
    """Some of the samples, with their images."""
    each = (samples.tokens == Tokenizer.image).sum(axis=1) // TOKENS
    images = None
    if samples.images is not None:
        images = np.split(samples.images, np.cumsum(each))[:-1][part]
        images = np.concatenate([samples.images[:0], *images])
    return Samples(samples.tokens[part], samples.documents[part], samples.counted[part], images)


def loss_of(model: Transformer, samples: Samples) -> Tensor:
    """The mean loss of the tokens that count, of a model that is whole."""
    tokens, documents = (
        torch.from_numpy(array).long() for array in (samples.tokens, samples.documents)
    )
    logits = model(tokens, documents, images=torch.from_numpy(samples.images))
    labels = torch.where(torch.from_numpy(samples.has_target), tokens[:, 1:], IGNORED)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


class MixedRun(TinyRun):
    """A run of such batches, or of text alone."""

    text = False

    def samples(self, step: int) -> Samples:
        own = self.partition
        every = (text_alone if self.text else mixed)(step, self.config)
        return cut(every, slice(own.start, own.start + own.samples))
