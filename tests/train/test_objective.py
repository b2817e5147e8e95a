"""What is minimised, on rows made by hand: its units and losses, each of which is known beforehand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ranks import tiny, unsharded
from torch import Tensor, nn

from panthalassa.config_finetune import Lora
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.finetune.chat import Message, encode_prompt
from panthalassa.finetune.dpo import Preference
from panthalassa.finetune.sft import Answers
from panthalassa.model.lora import Dropout, LoraLinear, add_adapters
from panthalassa.model.transformer import Transformer
from panthalassa.stream.reader import PADDING, Samples
from panthalassa.train.micro_batch import MicroBatch, micro_batches
from panthalassa.train.objective import NextToken, Objective

LENGTH = 16
GOOD = 7
ADAPTER = Lora(rank=1, alpha=1.0, targets=["q_proj"])
Document = tuple[list[int], int]
"""Tokens, and from which of them on they count."""


def samples_of(*rows: Sequence[Document]) -> Samples:
    """A row holds its documents from the left, and padding behind them."""
    tokens = np.zeros((len(rows), LENGTH), np.int32)
    documents = np.full_like(tokens, PADDING)
    counted = np.zeros(tokens.shape, bool)
    for row, content in enumerate(rows):
        start = 0
        for number, (ids, first) in enumerate(content):
            end = start + len(ids)
            tokens[row, start:end], documents[row, start:end] = ids, number
            counted[row, start + first : end] = True
            start = end
    return Samples(tokens, documents, counted)


def batches_of(samples: Samples, size: int) -> list[MicroBatch]:
    return micro_batches(samples, -(-len(samples) // size), size, torch.device("cpu"))


def losses(objective: Objective, model: nn.Module, samples: Samples) -> list[float]:
    """The sum over all rows, cut into micro-batches of several sizes, the last of which has rows that
    are missing."""
    return [
        sum(objective.loss(model, batch, 8).item() for batch in batches_of(samples, size))  # type: ignore[arg-type]
        for size in (len(samples), 1, 2, len(samples) + 3)
    ]


TEXTS = samples_of(
    [([1, 5, 6, 7], 0), ([1, 9], 0)],  # 3 targets and 1
    [([1, 5, 6, 7, 8], 3), ([1, 9, 9], 2)],  # 2 and 1, behind what does not count
    [([1, 5], 2), ([1], 0)],  # none: nothing counts, and a first token is not predicted
    [],
)
PAIRS = samples_of(
    [([1, 2, 7], 2), ([1, 2, 8], 2), ([1, 3, 8], 2), ([1, 3, 7], 2)],
    [([1, 2, 7, 7], 2), ([1, 2, 8], 2)],
    [],
    [([1, 2, 8, 7], 2), ([1, 2, 7, 9, 9], 2)],
)
MARGINS = [1, -1, 2, 0]
"""By how many GOOD tokens the chosen answer of each pair has more."""


def test_units_are_the_tokens_that_count_and_the_pairs() -> None:
    assert NextToken().units(TEXTS) == Answers().units(TEXTS) == 7
    assert Preference(0.1).units(PAIRS) == 4
    for objective in (NextToken(), Preference(0.1)):
        assert objective.units(samples_of([], [])) == 0
        assert objective.units(samples_of()) == 0


def uniform() -> Transformer:
    """A model to which all tokens are equally likely."""
    model = unsharded(tiny())
    with torch.no_grad():
        model.head.output.weight.zero_()
    return model


def test_a_target_of_a_model_that_knows_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    model = uniform()
    expected = 7 * math.log(model.config.vocabulary_size)
    for objective in (NextToken(), Answers()):
        assert losses(objective, model, TEXTS) == pytest.approx([expected] * 4, rel=1e-5)
        assert set(losses(objective, model, samples_of([], []))) == {0.0}


def test_a_pair_costs_ln_2_where_the_model_is_its_reference() -> None:
    model = unsharded(tiny())
    add_adapters(model, ADAPTER, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("lora_a", "lora_b")):
                weight.fill_(name.endswith("lora_a"))
    for beta in (0.1, 5.0):
        assert losses(Preference(beta), model, PAIRS) == pytest.approx([4 * math.log(2)] * 4)
        assert set(losses(Preference(beta), model, samples_of([], []))) == {0.0}


class Gained(nn.Module):
    """Says everything for sure; its adapter has made GOOD `gain` nats likelier, and all else not."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        base = nn.Linear(1, 1, bias=False)
        self.adapter = LoraLinear(base, ADAPTER, Dropout(0.0, 0), 0)
        for weight, value in zip(self.adapter.parameters(), (0.0, gain, 1.0), strict=True):
            nn.init.constant_(weight, value)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor,
        labels: Tensor,
        chunk: int,
        reduction: str,
        images: Tensor | None,
    ) -> Tensor:
        assert reduction == "none"
        assert images is None
        gained: Tensor = self.adapter((labels == GOOD).float()[..., None])
        return -gained[..., 0]


@pytest.mark.parametrize(("beta", "gain"), [(0.1, 1.5), (2.0, 0.7), (1.0, -3.0)])
def test_a_pair_costs_the_softplus_of_what_the_chosen_answer_did_not_gain(
    beta: float, gain: float
) -> None:
    """-log σ(β d), where d is the log-ratio that the chosen answer gained over the rejected one."""
    expected = sum(math.log1p(math.exp(-beta * gain * margin)) for margin in MARGINS)
    assert losses(Preference(beta), Gained(gain), PAIRS) == pytest.approx([expected] * 4, rel=1e-5)


def test_prompts_are_put_as_the_samples_of_an_objective_are() -> None:
    tokenizer = Tokenizer.train(["the sea, the sea and the land"] * 3, 320)
    text = "the sea<|im_end|>"
    ids = tokenizer.encode(text)
    assert NextToken().prompt(tokenizer, text) == [tokenizer.bos, *ids]
    asked = encode_prompt(tokenizer, [Message(role="user", content=text)])
    assert Answers().prompt(tokenizer, text) == Preference(0.1).prompt(tokenizer, text) == asked
    assert tokenizer.turn_end not in ids
