"""One step: what counts in the loss, by what it is divided, and at which rate it is taken."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import TinyRun, mean_loss, packed, tiny, unsharded, unsharded_gradients, whole

from panthalassa.config import Config, Schedule
from panthalassa.model.transformer import IGNORED
from panthalassa.stream.reader import PADDING, Samples
from panthalassa.train.micro_batch import micro_batches
from panthalassa.train.schedule import learning_rate
from panthalassa.train.step import build_optimizer

CPU = torch.device("cpu")
LENGTH = 24

Rows = list[list[int]]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """The lengths of the documents in each row of up to LENGTH tokens."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        left, row = draw(st.integers(0, LENGTH)), []
        while left:
            row.append(draw(st.integers(1, left)))
            left -= row[-1]
        found.append(row)
    return found


def samples_of(lengths: Rows) -> Samples:
    """Tokens that all differ, so that a label tells where it comes from."""
    tokens = np.arange(len(lengths) * LENGTH, dtype=np.int32).reshape(-1, LENGTH)
    documents = np.full_like(tokens, PADDING)
    for row, parts in zip(documents, lengths, strict=True):
        indices = np.repeat(np.arange(len(parts)), parts)
        row[: len(indices)] = indices
    return Samples.of_text(tokens, documents)


@given(rows(), st.integers(1, 4), st.integers(0, 2))
def test_every_token_but_the_first_of_its_document_is_a_target_once(
    lengths: Rows, size: int, more: int
) -> None:
    count = -(-len(lengths) // size) + more
    if count == 0:
        return
    samples = samples_of(lengths)
    batches = micro_batches(samples, count, size, CPU)
    assert samples.targets == sum(n - 1 for row in lengths for n in row)
    expected = set()
    for tokens, parts in zip(samples.tokens.tolist(), lengths, strict=True):
        starts = np.cumsum([0, *parts]).tolist()
        expected |= set(tokens[: sum(parts)]) - {tokens[start] for start in starts[:-1]}
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(labels[labels != IGNORED].tolist()) == sorted(expected)


@given(rows(), st.integers(1, 4), st.integers(0, 2))
def test_a_label_is_the_next_token_of_the_same_document(
    lengths: Rows, size: int, more: int
) -> None:
    count = -(-len(lengths) // size) + more
    if count == 0:
        return
    for batch in micro_batches(samples_of(lengths), count, size, CPU):
        assert batch.tokens.shape == batch.documents.shape == batch.labels.shape == (size, LENGTH)
        assert {t.dtype for t in (batch.tokens, batch.documents, batch.labels)} == {torch.int64}
        assert (batch.labels[:, -1] == IGNORED).all()
        counts = batch.labels[:, :-1] != IGNORED
        assert torch.equal(batch.labels[:, :-1][counts], batch.tokens[:, 1:][counts])
        here, after = batch.documents[:, :-1], batch.documents[:, 1:]
        assert torch.equal(counts, (here == after) & (here != PADDING))


@given(rows(), st.integers(1, 4), st.integers(0, 2))
def test_samples_keep_their_order_and_the_rest_is_padding(
    lengths: Rows, size: int, more: int
) -> None:
    count = -(-len(lengths) // size) + more
    if count == 0:
        return
    samples = samples_of(lengths)
    batches = micro_batches(samples, count, size, CPU)
    assert len(batches) == count
    tokens = torch.cat([batch.tokens for batch in batches]).numpy()
    documents = torch.cat([batch.documents for batch in batches]).numpy()
    assert np.array_equal(tokens[: len(samples)], samples.tokens)
    assert np.array_equal(documents[: len(samples)], samples.documents)
    assert (documents[len(samples) :] == PADDING).all()


Result = tuple[float, dict[str, torch.Tensor]]


def loss_and_gradients(config: Config) -> Result:
    run = TinyRun(config)
    gradients = run.gradients(0)
    return run.step(0)[0], gradients


@pytest.mark.parametrize("global_batch", [1, 3, 4])
def test_the_loss_is_a_mean_over_tokens_whoever_has_them(ranks: Any, global_batch: int) -> None:
    # With one sample, the second rank has none and passes padding through the model.
    config = tiny(f"train.global_batch={global_batch}", "train.micro_batch=1")
    samples = packed(0, config)
    expected_loss = mean_loss(unsharded(config), samples).item()
    expected = unsharded_gradients(config, 0)
    tokens = [(row != PADDING).sum() for row in samples.documents]
    assert len(set(tokens)) == global_batch, "rows of one size would hide a wrong mean"
    for loss, gradients in ranks(2, loss_and_gradients, config):
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        for name, gradient in gradients.items():
            error = (gradient - expected[name]).norm()
            assert error < 1e-5 * expected[name].norm(), name


def moved(config: Config) -> dict[str, Any]:
    """How far each of two steps moves the weights, by rate and clipping."""
    found = {}
    for case, overrides in {
        "peak": ["train.schedule.warmup_steps=0"],
        "warming up": ["train.schedule.warmup_steps=10"],
        "no rate": ["train.schedule.warmup_steps=0", "train.optimizer.learning_rate=1.0e-30"],
    }.items():
        run = TinyRun(tiny("train.optimizer.weight_decay=0", *overrides))
        before = [whole(p.detach()).clone() for p in run.model.parameters()]
        run.step(0)
        after = [whole(p.detach()) for p in run.model.parameters()]
        found[case] = max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))
    return found


def test_a_step_is_as_long_as_the_schedule_says(ranks: Any) -> None:
    (found,) = ranks(1, moved, tiny())
    # Adam's first step is the rate itself, wherever the gradient is not next to zero.
    assert found["peak"] == pytest.approx(0.01, rel=0.01)
    assert found["warming up"] == pytest.approx(0.001, rel=0.01)
    assert found["no rate"] == 0


class Plain(torch.optim.SGD):
    """Takes every step, whatever the guard says."""

    def step(self, closure: Any = None) -> Any:
        del self.found_inf
        return super().step(closure)


def clipped(config: Config) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    run = TinyRun(config)
    gradients = run.gradients(0)
    run.optimizer = Plain(run.model.parameters(), lr=1.0)
    before = {name: whole(p.detach()).clone() for name, p in run.model.named_parameters()}
    _, norm = run.step(0)
    after = {name: whole(p.detach()) for name, p in run.model.named_parameters()}
    return norm, gradients, {name: before[name] - after[name] for name in before}


def test_the_norm_is_that_before_clipping_and_the_step_that_behind_it(ranks: Any) -> None:
    config = tiny("parallel.tp_size=2", "train.schedule.warmup_steps=0",
                  "train.optimizer.learning_rate=1.0")  # fmt: skip
    for norm, gradients, step in ranks(4, clipped, config):
        true = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
        assert norm == pytest.approx(true, rel=1e-5)
        assert norm > 0.6
        length = torch.cat([change.flatten() for change in step.values()]).norm().item()
        assert length == pytest.approx(0.5, rel=1e-3)


def test_norms_are_not_decayed() -> None:
    model = unsharded(tiny())
    optimizer = build_optimizer(model, tiny().train.optimizer)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1), name


def test_a_tied_weight_is_stepped_once() -> None:
    model = unsharded(tiny("model.tied_embeddings=true"))
    optimizer = build_optimizer(model, tiny().train.optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters})


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, float, Schedule]:
    """Steps, peak and schedule; at least two steps come after the warm-up."""
    steps = draw(st.integers(2, 400))
    schedule = Schedule(
        kind=draw(st.sampled_from(["cosine", "wsd"])),
        warmup_steps=draw(st.integers(0, steps - 2)),
        decay_share=draw(st.floats(0.01, 1)),
        final_share=draw(st.floats(0, 1)),
    )
    return steps, draw(st.floats(1e-6, 1.0)), schedule


def rates(steps: int, peak: float, schedule: Schedule) -> list[float]:
    return [learning_rate(step, steps, peak, schedule) for step in range(steps)]


@given(schedules())
def test_the_rate_rises_in_a_line_to_its_peak(case: tuple[int, float, Schedule]) -> None:
    _, peak, schedule = case
    warmup = schedule.warmup_steps
    expected = [peak * (step + 1) / warmup for step in range(warmup)]
    assert rates(*case)[:warmup] == pytest.approx(expected)


@given(schedules())
def test_the_rate_is_never_above_its_peak_and_never_below_its_end(
    case: tuple[int, float, Schedule],
) -> None:
    _, peak, schedule = case
    found = rates(*case)
    assert max(found) <= peak * (1 + 1e-12)
    assert min(found[schedule.warmup_steps :]) >= peak * schedule.final_share * (1 - 1e-12)


@given(schedules())
def test_the_rate_falls_from_its_peak_to_the_final_share(
    case: tuple[int, float, Schedule],
) -> None:
    _, peak, schedule = case
    after = rates(*case)[schedule.warmup_steps :]
    assert all(a >= b - 1e-12 * peak for a, b in pairwise(after))
    assert after[-1] == pytest.approx(peak * schedule.final_share)


@given(schedules())
def test_a_cosine_starts_at_its_peak_and_is_symmetric(case: tuple[int, float, Schedule]) -> None:
    steps, peak, schedule = case
    schedule = schedule.model_copy(update={"kind": "cosine"})
    after = rates(steps, peak, schedule)[schedule.warmup_steps :]
    final = peak * schedule.final_share
    assert after[0] == pytest.approx(peak)
    sums = [a + b for a, b in zip(after, reversed(after), strict=True)]
    assert sums == pytest.approx([peak + final] * len(sums))


def test_wsd_is_stable_until_the_last_share_of_the_steps() -> None:
    schedule = Schedule(kind="wsd", warmup_steps=10, decay_share=0.2, final_share=0.0)
    found = rates(100, 1.0, schedule)
    assert found[10:80] == [1.0] * 70
    assert found[80:] == pytest.approx([(19 - step) / 20 for step in range(20)])
