"""Continuations of prompts, token by token.

`generate_batch` is for a model that is whole in one process: it keeps keys and values (`kv_cache`).
`generate` is for one that may be sharded, as it is while it trains: all ranks call it with the same
arguments and get the same ids, and every step runs the model over the whole text so far. Both draw
tokens in the same way (`sampling`).
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from panthalassa.errors import ConfigError
from panthalassa.model.kv_cache import KVCache
from panthalassa.model.sampling import Sampler, Sampling
from panthalassa.model.transformer import Transformer
from panthalassa.model.vision import IMAGE

PAD_TO = 64
"""Lengths are padded to a multiple of this where they are read again and again, so that few shapes
occur."""
BATCH = 32
"""Prompts that are continued at a time."""
ROOM = 512
"""Tokens of a continuation that the cache has room for from the start: most end before their limit."""

Watch = Callable[[int, int], bool]
"""Is told the number of a prompt and an id that continues it; returns whether that is enough."""


class _Reader(Protocol):
    """What gives the logits of a batch of texts: `KVCache` and `_Recomputed`."""

    def read(self, new: Sequence[Sequence[int]]) -> Tensor: ...

    def keep(self, rows: Sequence[int]) -> None: ...


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008 (frozen)
    stop_ids: Container[int] = (),
    watch: Watch | None = None,
    batch: int = BATCH,
    images: Sequence[Tensor] | None = None,
) -> list[list[int]]:
    """At most `limit` ids that continue each prompt (ids), up to one of `stop_ids`, without it.

    sampling: of all prompts, or of each. watch: ends continuations sooner. batch: prompts at a time,
    which changes nothing but speed and memory, up to the rounding of logits. images: those of each
    prompt, in the order of their tokens in it, uint8 [images, size, size, 3]. Texts may be longer than
    those that the model was trained on. Raises ConfigError for a prompt without ids, or one whose
    images do not fit its tokens.
    """
    shown: Sequence[Tensor | None] = images or [None] * len(prompts)
    if isinstance(sampling, Sampling):
        sampling = [sampling] * len(prompts)
    texts = [
        _Text(number, *given)
        for number, given in enumerate(zip(prompts, sampling, shown, strict=True))
    ]
    for text in texts:
        text.check(model)
    longest_first = sorted(texts, key=lambda text: -len(text.ids))
    for start in range(0, len(texts), batch):
        some = longest_first[start : start + batch]
        seen = [text.images for text in some if text.images is not None and len(text.images)]
        room = len(some[0].ids) + min(limit, ROOM)
        cache = KVCache(model, len(some), room, torch.cat(seen) if seen else None)
        _continue(cache, some, limit, stop_ids, watch)
    return [text.found for text in texts]


def generate(
    model: Transformer,
    prompt: Sequence[int],
    limit: int,
    temperature: float,
    seed: int,
    stop_ids: Container[int],
    tp_size: int = 1,
) -> list[int]:
    """At most `limit` ids that continue `prompt` (ids), up to one of `stop_ids`, without it.

    tp_size: ranks over which the model splits sequences.
    """
    text = _Text(0, prompt, Sampling(temperature, seed=seed))
    _continue(_Recomputed(model, tp_size), [text], limit, stop_ids, None)
    return text.found


class _Text:
    """A prompt and what continues it."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        sampling: Sampling,
        images: Tensor | None = None,
    ) -> None:
        if not prompt:
            raise ConfigError(f"prompt {number} is empty: there is nothing that could be continued")
        self.number, self.ids, self.length = number, list(prompt), len(prompt)
        self.sampler, self.images = Sampler(sampling, prompt), images

    def check(self, model: Transformer) -> None:
        """Refuse images that do not fit the prompt or the model."""
        images = 0 if self.images is None else len(self.images)
        vision, tokens = model.config.vision, self.ids.count(IMAGE)
        if vision is None and images:
            raise ConfigError(
                f"prompt {self.number} has {images} images, and the model reads text alone"
            )
        if vision and tokens != images * vision.tokens:
            raise ConfigError(
                f"prompt {self.number} has {tokens} tokens of images and {images} images, each of which "
                f"takes {vision.tokens}"
            )

    @property
    def found(self) -> list[int]:
        return self.ids[self.length :]


@torch.no_grad()
def _continue(
    reader: _Reader,
    texts: Sequence[_Text],
    limit: int,
    stop_ids: Container[int],
    watch: Watch | None,
) -> None:
    """Append to each text the ids that continue it."""
    new: list[Sequence[int]] = [text.ids for text in texts]
    for _ in range(limit):
        logits = reader.read(new)
        chosen = torch.stack(
            [text.sampler.choose(row, text.ids) for text, row in zip(texts, logits, strict=True)]
        ).tolist()
        going = []
        for row, (text, token) in enumerate(zip(texts, chosen, strict=True)):
            if token not in stop_ids:
                text.ids.append(token)
                if not (watch and watch(text.number, token)):
                    going.append(row)
        if not going:
            return
        if len(going) < len(texts):
            reader.keep(going)
            texts = [texts[row] for row in going]
        new = [text.ids[-1:] for text in texts]


class _Recomputed:
    """Reads the whole of each text anew for every token, by whatever ranks hold the model."""

    def __init__(self, model: Transformer, tp_size: int) -> None:
        self.model = model
        self._multiple = math.lcm(PAD_TO, tp_size)
        self._texts: list[list[int]] = []

    def read(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Logits [batch, vocabulary] in fp32 of what follows each text, which has got the ids `new`."""
        self._texts = [
            [*text, *ids] for text, ids in zip(self._texts or [[]] * len(new), new, strict=True)
        ]
        return torch.stack([self._next_logits(text) for text in self._texts])

    def keep(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]

    def _next_logits(self, text: Sequence[int]) -> Tensor:
        ids = torch.tensor([text], device=next(self.model.parameters()).device)
        padded = torch.nn.functional.pad(ids, (0, -len(text) % self._multiple))
        logits = self.model(padded, torch.zeros_like(padded))
        whole = logits.full_tensor() if isinstance(logits, DTensor) else logits
        return whole[0, len(text) - 1].float()
