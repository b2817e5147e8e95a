"""The keys and values of a batch of texts that grow: each token is read once.

The ids that each text has got come in, the logits of what follows it go out. Prompts of unequal length
are padded on the left, so that all texts end in the same column; padding sees only padding, and
positions count from the first token of a text. Images are read together with the prompts that hold
them. The model must be whole: under tensor parallelism ranks split sequences, which a single token can
not be.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from panthalassa.model.transformer import Transformer, rotary_table


class LayerCache:
    """Keys and values of one block: two tensors [batch, kv_heads, length, head]."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.used = keys, values, 0

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of the next positions; returns those of all so far."""
        start, self.used = self.used, self.used + keys.shape[2]
        self.keys[:, :, start : self.used] = keys
        self.values[:, :, start : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def grow(self, more: int) -> None:
        """Have room for so many positions more."""
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, more))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, more))

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of the batch, and forget the others."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class KVCache:
    """Of `batch` texts. There is room for `room` tokens of each, padding included, and it is doubled
    when more come. images: those in what the texts get first, in their order, uint8 [images, size, size,
    3]."""

    def __init__(
        self, model: Transformer, batch: int, room: int, images: Tensor | None = None
    ) -> None:
        self.model, self._images = model, images
        config, weight = model.config, model.embedding.weight
        shape = (batch, config.kv_heads, 0, config.head_size)
        self._layers = [
            LayerCache(weight.new_empty(shape), weight.new_empty(shape)) for _ in model.blocks
        ]
        self._is_text = torch.zeros(batch, 0, dtype=torch.bool, device=weight.device)
        self._lengths = torch.zeros(batch, 1, dtype=torch.long, device=weight.device)
        self._used = 0
        self._grow(room)

    @torch.no_grad()
    def read(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Logits [batch, vocabulary] in fp32 of what follows each text, which has got the ids `new`."""
        logits: Tensor = self.model.head(self.hidden(new)[:, -1:])
        return logits[:, 0].float()

    @torch.no_grad()
    def hidden(self, new: Sequence[Sequence[int]]) -> Tensor:
        """What the head reads of the ids `new`: [batch, longest of them, hidden], padded on the left."""
        width, device = max(map(len, new)), self._lengths.device
        start, self._used = self._used, self._used + width
        if self._used > self._is_text.shape[1]:
            self._grow(max(self._used, 2 * self._is_text.shape[1]))
        padded = [[0] * (width - len(ids)) + list(ids) for ids in new]
        is_text = torch.tensor(
            [[False] * (width - len(ids)) + [True] * len(ids) for ids in new], device=device
        )
        self._is_text[:, start : self._used] = is_text
        positions = (self._lengths + is_text.cumsum(1) - 1).clamp(min=0)
        self._lengths += is_text.sum(1, keepdim=True)
        columns = torch.arange(self._used, device=device)
        mask = self._is_text[:, None, None, : self._used] == is_text[:, None, :, None]
        mask &= columns <= columns[start:, None]
        table = self._table[:, positions].unsqueeze(2)  # the same for all heads
        x = self._embedded(torch.tensor(padded, device=device))
        for block, layer in zip(self.model.blocks, self._layers, strict=True):
            x = block(x, table, mask, layer)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self._images is None:
            return self.model.embedding(tokens)  # type: ignore[no-any-return]
        images, self._images = self._images, None
        return self.model.embed(tokens, images.to(tokens.device))

    def _grow(self, room: int) -> None:
        config, more = self.model.config, room - self._is_text.shape[1]
        for layer in self._layers:
            layer.grow(more)
        self._is_text = torch.nn.functional.pad(self._is_text, (0, more))
        self._table = rotary_table(
            room, config.head_size, config.rope_theta, self._lengths.device, config.rope_scaling
        )

    def repeated(self, times: int) -> "KVCache":
        """A cache of so many texts that begin as the first one has; this one is as it was."""
        other = copy(self)
        other._layers = [copy(layer) for layer in self._layers]
        other.keep([0] * times)
        return other

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some texts of the batch alone."""
        index = torch.tensor(rows, device=self._lengths.device)
        for layer in self._layers:
            layer.keep(index)
        self._is_text, self._lengths = self._is_text[index], self._lengths[index]
