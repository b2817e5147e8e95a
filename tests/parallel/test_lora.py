"""Adapters on any mesh: the losses and gradients of one process, written as in the papers."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import TinyRun, mean_loss, packed, plain_curve, tiny, whole
from torch import Tensor, nn
from torch.func import functional_call

from panthalassa.config import Config
from panthalassa.finetune.dpo import Preference
from panthalassa.model.lora import Dropout, adapted, is_adapter
from panthalassa.model.transformer import (
    Transformer,
    count_parameters,
    initial_weight,
    parameters_by_name,
)
from panthalassa.stream.reader import PADDING, Samples

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2)]
STEPS = 5
CPU = torch.device("cpu")
LORA = (
    "finetune.start=nowhere",
    "finetune.lora.rank=3",
    "finetune.lora.alpha=6",
    "train.optimizer.weight_decay=0.1",
    "train.optimizer.learning_rate=0.03",
    "train.micro_batch=2",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "gathered": ("parallel.keep_gathered=true",),
    "full": ("parallel.activation_checkpointing=full", "train.loss_chunk=24"),
    "some": ("finetune.lora.targets=[q_proj, down_proj]",),
}

Curve = list[tuple[float, float]]


def paired(step: int, config: Config) -> Samples:
    """The global batch of a step: rows of one or two pairs, and one row that holds none."""
    samples = packed(step, config)
    documents = np.full_like(samples.documents, PADDING)
    for row in range(len(samples) - 1):
        for document, length in enumerate((5, 4, 7, 6)[: 4 if row % 2 else 2]):
            start = int((documents[row] != PADDING).sum())
            documents[row, start : start + length] = document
    answers = documents != PADDING
    answers[:, :2] = False  # of a prompt
    return Samples(samples.tokens, documents, answers)


class PairedRun(TinyRun):
    def samples(self, step: int) -> Samples:
        every, own = paired(step, self.config), self.partition
        part = slice(own.start, own.start + own.samples)
        return Samples(every.tokens[part], every.documents[part], every.counted[part])


def curves(configs: list[Config], pairs: bool) -> list[Curve]:
    found = []
    for config in configs:
        run = PairedRun(config, Preference(0.5)) if pairs else TinyRun(config)
        found.append([run.step(step) for step in range(STEPS)])
    return found


class Merged(nn.Module):
    """The model with W + (alpha / rank) B A for each target, in one process."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.finetune is not None
        assert config.finetune.lora is not None
        lora, self.base, self.names = config.finetune.lora, Transformer(config.model), []
        self.adapters, self.scale = nn.ParameterDict(), lora.alpha / lora.rank
        self.weights = {}
        for name, p in self.base.named_parameters():
            self.weights[name] = initial_weight(name, p.shape, config.model, config.run.seed, CPU)
            own = name.removesuffix(".weight")
            if own.rpartition(".")[2] in lora.targets:
                self.names.append(name)
                shapes = {"lora_a": (lora.rank, p.shape[1]), "lora_b": (p.shape[0], lora.rank)}
                for kind, shape in shapes.items():
                    given = (f"{own}.{kind}", torch.Size(shape), config.model, config.run.seed)
                    self.adapters[f"{own}.{kind}".replace(".", "/")] = nn.Parameter(
                        initial_weight(*given, CPU)
                    )

    def forward(self, tokens: Tensor, documents: Tensor, adapters: bool = True) -> Tensor:
        weights = dict(self.weights)
        for name in self.names if adapters else []:
            own = name.removesuffix("weight").replace(".", "/")
            a, b = self.adapters[f"{own}lora_a"], self.adapters[f"{own}lora_b"]
            weights[name] = weights[name] + self.scale * b @ a
        return functional_call(self.base, weights, (tokens, documents))


def preference_loss(model: Merged, samples: Samples, beta: float) -> Tensor:
    tokens = torch.from_numpy(samples.tokens).long()
    documents = torch.from_numpy(samples.documents).long()
    policy = model(tokens, documents).log_softmax(-1)
    with torch.no_grad():
        reference = model(tokens, documents, adapters=False).log_softmax(-1)
    losses = []
    for row, own in enumerate(samples.documents):
        ratios = [torch.zeros(()) for _ in range(own.max() + 1)]
        for at in range(len(own) - 1):
            if own[at] == own[at + 1] != PADDING and samples.counted[row, at + 1]:
                target = tokens[row, at + 1]
                ratios[own[at]] = (
                    ratios[own[at]] + policy[row, at, target] - reference[row, at, target]
                )
        for chosen, rejected in zip(ratios[::2], ratios[1::2], strict=True):
            losses.append(-F.logsigmoid(beta * (chosen - rejected)))
    return torch.stack(losses).mean()


def reference(config: Config, pairs: bool) -> Curve:
    model = Merged(config)

    def loss_of(step: int) -> Tensor:
        if pairs:
            return preference_loss(model, paired(step, config), 0.5)
        return mean_loss(model, packed(step, config))  # type: ignore[arg-type]

    return plain_curve(model, loss_of, config, STEPS)


def assert_close(curve: Curve, expected: Curve) -> None:
    np.testing.assert_allclose(curve, expected, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("pairs", [False, True], ids=["sft", "dpo"])
@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_adapters_learn_on_every_mesh_what_they_learn_in_one_process(
    ranks: Any, dp: int, tp: int, pairs: bool
) -> None:
    configs = {
        name: tiny(f"parallel.tp_size={tp}", *LORA, *more) for name, more in VARIANTS.items()
    }
    expected = {name: reference(config, pairs) for name, config in configs.items()}
    if pairs:
        first, last = expected["plain"][0][0], expected["plain"][-1][0]
        assert last < first - 0.01
        assert first == pytest.approx(np.log(2), abs=1e-6), "B is zero: there is no preference yet"
    for found in ranks(dp * tp, curves, list(configs.values()), pairs):
        for name, curve in zip(configs, found, strict=True):
            assert_close(curve, expected[name])


def test_dropout_is_the_same_on_every_mesh_and_another_in_each_step(ranks: Any) -> None:
    def config(tp: int, *more: str) -> Config:
        return tiny(f"parallel.tp_size={tp}", *LORA, "finetune.lora.dropout=0.4", *more)

    more = [(), ("parallel.activation_checkpointing=full", "train.micro_batch=1")]
    [expected, again] = ranks(1, curves, [config(1, *m) for m in more], False)[0]
    assert_close(again, expected)
    assert not np.allclose(expected, reference(config(1), False), atol=1e-4)
    for dp, tp in MESHES[1:]:
        for found in ranks(dp * tp, curves, [config(tp, *m) for m in more], False):
            for curve in found:
                assert_close(curve, expected)


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    dropout = Dropout(0.25, seed=3)
    x = torch.ones(4, 64, 500, requires_grad=True)
    seen = []
    for step, tokens in enumerate([torch.arange(256).view(4, 64)] * 2):
        dropout.step = step
        dropout.begin(tokens)
        seen += [dropout(x, layer) for layer in (0, 1)]
    for y in seen:
        kept = y != 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
        assert y[kept].unique().tolist() == [pytest.approx(1 / 0.75)]
        for dimension in range(3):
            shares = kept.float().mean([d for d in range(3) if d != dimension])
            deviation = (0.75 * 0.25 / (kept.numel() / len(shares))) ** 0.5
            assert (shares - 0.75).abs().max() < 5 * deviation
    for other in seen[1:]:
        both = ((seen[0] != 0) & (other != 0)).float().mean().item()
        assert both == pytest.approx(0.75**2, abs=0.01), "independent of other steps and layers"
    with torch.no_grad():
        assert torch.equal(dropout(x, 0), x), "an evaluation leaves out nothing"


def frozen(config: Config) -> tuple[int, int, list[str], bool]:
    run = TinyRun(config)
    before = {name: whole(p).clone() for name, p in parameters_by_name(run.model)}
    for step in range(3):
        run.step(step)
    changed = [n for n, p in parameters_by_name(run.model) if not torch.equal(before[n], whole(p))]
    moments = sum(len(state) for state in run.optimizer.state.values())
    return len(adapted(run.model)), moments, changed, bool(run.model.embedding.weight.requires_grad)


def test_nothing_but_adapters_changes_or_has_moments(ranks: Any) -> None:
    for layers, moments, changed, embedding in ranks(2, frozen, tiny(*LORA)):
        assert layers == 14, "seven in each of two blocks"
        assert len(changed) == 28
        assert all(is_adapter(name) for name in changed)
        assert moments == 3 * 28
        assert not embedding


def sizes(config: Config) -> tuple[int, int]:
    model = TinyRun(config).model
    return count_parameters(model), count_parameters(model, trained=True)


def test_parameters_are_counted_over_all_ranks(ranks: Any) -> None:
    config = tiny(*LORA, "parallel.tp_size=2")
    model = config.model
    outer = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)}
    inner = {"gate_proj": (32, 48), "up_proj": (32, 48), "down_proj": (48, 32)}
    adapters = model.layers * 3 * sum(sum(shape) for shape in [*outer.values(), *inner.values()])
    base = count_parameters(Transformer(model))
    assert ranks(4, sizes, config) == [(base + adapters, adapters)] * 4
