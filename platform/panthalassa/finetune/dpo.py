"""Direct preference optimization (Rafailov et al. 2023): to prefer the chosen answer, near the start.

A row of samples holds pairs: its document 2k is the chosen and 2k + 1 the rejected answer of pair k,
each behind its prompt. The reference is the same model without its adapters, so that it takes no memory
of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.finetune.chat import encode_question
from panthalassa.model.lora import without_adapters
from panthalassa.model.transformer import Transformer
from panthalassa.stream.reader import Samples
from panthalassa.train.micro_batch import MicroBatch


class Preference:
    """-log σ(β (log-ratio of the chosen answer - log-ratio of the rejected one)), summed over pairs
    (equation 7), where a log-ratio is log π(answer) - log π_ref(answer)."""

    forward_only = 1

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def units(self, samples: Samples) -> int:
        """Pairs."""
        return int((samples.documents.max(axis=1, initial=-1) + 1).sum()) // 2

    def loss(self, model: Transformer, batch: MicroBatch, chunk: int) -> Tensor:
        with torch.no_grad(), without_adapters(model):
            reference = -_loss_of_each(model, batch, chunk)
        ratios = _by_document(-_loss_of_each(model, batch, chunk) - reference, batch.documents)
        chosen, rejected = ratios[:, ::2], ratios[:, 1::2]
        pairs = batch.documents.amax(1, keepdim=True) // 2
        number = torch.arange(chosen.shape[1], device=chosen.device)
        losses = -F.logsigmoid(self.beta * (chosen - rejected))
        return torch.where(number <= pairs, losses, 0.0).sum()

    def prompt(self, tokenizer: TextTokenizer, text: str) -> list[int]:
        return encode_question(tokenizer, text)


def _loss_of_each(model: Transformer, batch: MicroBatch, chunk: int) -> Tensor:
    """Of each position [batch, sequence], in nats."""
    found: Tensor = model(
        batch.tokens, batch.documents, batch.labels, chunk, "none", images=batch.images
    )
    return found


def _by_document(values: Tensor, documents: Tensor) -> Tensor:
    """Sums of values [batch, sequence] by document: [batch, sequence or one more, even], zero where
    there is no document. Values of padding must be zero."""
    length = documents.shape[1] + documents.shape[1] % 2
    sums = values.new_zeros(len(documents), length)
    return sums.scatter_add(1, documents.clamp(min=0), values)
