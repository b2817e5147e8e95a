"""What is minimised: from a micro-batch to a loss that is summed over the units of the global batch."""

from typing import Protocol

from torch import Tensor

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.model.text import ids_of
from panthalassa.model.transformer import Transformer
from panthalassa.stream.reader import Samples
from panthalassa.train.micro_batch import MicroBatch


class Objective(Protocol):
    """The loss of a step is the sum of `loss` over all micro-batches and ranks, divided by the sum of
    `units`: so it does not depend on how the global batch was split."""

    forward_only: int
    """Forward passes of the model in a step beside the one that is trained."""

    def units(self, samples: Samples) -> int:
        """Of what the loss is a mean."""

    def loss(self, model: Transformer, batch: MicroBatch, chunk: int) -> Tensor:
        """Summed over the units of a micro-batch; logits exist for `chunk` positions at once."""

    def prompt(self, tokenizer: TextTokenizer, text: str) -> list[int]:
        """The ids of a text that the model shall continue, as samples put it."""


class NextToken:
    """The cross-entropy (nats) of each token that counts, given those before it."""

    forward_only = 0

    def units(self, samples: Samples) -> int:
        return samples.targets

    def loss(self, model: Transformer, batch: MicroBatch, chunk: int) -> Tensor:
        found: Tensor = model(
            batch.tokens, batch.documents, batch.labels, chunk, images=batch.images
        )
        return found

    def prompt(self, tokenizer: TextTokenizer, text: str) -> list[int]:
        return ids_of(tokenizer, text)
