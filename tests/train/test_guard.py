"""The guard: which gradients are refused, and that a refused one leaves no trace."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Spoil, Stop, go, looping, open_run, same_on_all_ranks, tensors
from ranks import TinyRun, tiny

from panthalassa.config import Config, Guard
from panthalassa.train.events import Notice, Step
from panthalassa.train.guard import ENOUGH, NormGuard

CPU = torch.device("cpu")
SETTING = Guard(window=32)
unhurried = settings(deadline=None)
"""torch takes its time at first."""


def guard_of(norms: list[float], setting: Guard = SETTING) -> tuple[NormGuard, list[bool]]:
    guard = NormGuard(CPU)
    return guard, [bool(guard.refuses(torch.tensor(norm), setting)) for norm in norms]


calm = st.floats(0.5, 1.2)


@unhurried
@given(st.lists(calm, max_size=80), st.floats(1e-30, 1e30))
def test_norms_of_one_size_are_never_refused(norms: list[float], size: float) -> None:
    _, refused = guard_of([norm * size for norm in norms])
    assert not any(refused)


@unhurried
@given(st.lists(calm, max_size=80), st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_is_refused_from_the_first_step_on(
    norms: list[float], bad: float
) -> None:
    guard, refused = guard_of([*norms, bad])
    before, _ = guard_of(norms)
    assert refused[-1]
    assert torch.equal(guard.norms, before.norms) or guard.norms.isnan().any()
    assert guard.norms.isfinite().sum() == len(norms)
    assert guard.skips == 1


@unhurried
@given(st.lists(calm, min_size=ENOUGH, max_size=80), st.floats(10, 1e30))
def test_an_outlier_is_refused_and_does_not_raise_the_limit(
    norms: list[float], factor: float
) -> None:
    guard, refused = guard_of([*norms, factor, factor, norms[0]])
    assert refused[-3:] == [True, True, False]
    assert guard.skips == 0


@unhurried
@given(st.lists(calm, max_size=ENOUGH - 1), st.floats(10, 1e30))
def test_few_norms_refuse_nothing_that_is_finite(norms: list[float], factor: float) -> None:
    assert not guard_of([*norms, factor])[1][-1]


def test_norms_that_sink_are_followed() -> None:
    """As in the first steps of a run."""
    _, refused = guard_of([100 * 0.8**step + 1 for step in range(200)])
    assert not any(refused)


@unhurried
@given(st.lists(st.floats(0.1, 10), min_size=40, max_size=80), st.floats(2, 8))
def test_the_limit_is_that_of_the_definition(norms: list[float], sigma: float) -> None:
    setting = Guard(window=32, sigma=sigma)
    guard, _ = guard_of(norms, setting)
    recent = guard.norms[-32:].clone()
    guard.refuses(torch.tensor(1.0), setting)
    if recent.isfinite().sum() < ENOUGH:
        return
    known = recent[recent.isfinite()]
    expected = known.mean() + sigma * max(known.std(correction=0), 0.25 * known.mean())
    assert guard.limit.item() == pytest.approx(expected.item())


def test_a_step_with_a_large_history_still_refuses_infinity() -> None:
    _, refused = guard_of([3e38] * 40 + [math.inf])
    assert refused == [False] * 40 + [True]


Case = tuple[int, float] | None
"""A step that is spoilt (from 0), and by which factor."""


def state_behind(config: Config, steps: list[int], spoilt: Case) -> list[torch.Tensor]:
    """This rank's weights, moments, counters and history behind some steps."""
    run = TinyRun(config)
    run.guard.norms[-ENOUGH:] = 2.0  # as if behind some steps: an outlier is known for one
    for step in steps:
        factor = spoilt[1] if spoilt and spoilt[0] == step else 1.0
        hook = run.model.register_forward_hook(lambda m, inputs, loss, by=factor: loss * by)
        run.step(step)
        hook.remove()
    found = [run.guard.norms]
    for parameter in run.model.parameters():
        moments = run.optimizer.state[parameter]
        found += [parameter.detach(), *(moments[k] for k in ("exp_avg", "exp_avg_sq", "step"))]
    return [getattr(tensor, "_local_tensor", tensor).nan_to_num() for tensor in found]


def differences(config: Config) -> list[int]:
    """Tensors that a step changes which is spoilt in some way, against not having had that step."""
    found = []
    for case in ((0, math.nan), (2, math.nan), (2, math.inf), (2, 1e4), (2, 1.0)):
        expected = state_behind(config, [step for step in range(4) if step != case[0]], None)
        state = state_behind(config, list(range(4)), case)
        pairs = zip(state, expected, strict=True)
        found.append(sum(not torch.equal(one, other) for one, other in pairs))
    return found


@pytest.mark.parametrize(("world", "tp"), [(2, 1), (2, 2), (4, 2)])
def test_a_spoilt_step_leaves_the_state_as_if_it_had_not_been(
    ranks: Any, world: int, tp: int
) -> None:
    """And a step by a factor of 1 does not, else a guard that skips all would pass."""
    for *spoilt, honest in ranks(world, differences, tiny(f"parallel.tp_size={tp}")):
        assert spoilt == [0, 0, 0, 0]
        assert honest > 20


def spoilt_run(
    config: Config, folder: str, spoilt: list[int], until: int
) -> tuple[list[int], dict[str, torch.Tensor], list[str]]:
    """The steps that are skipped up to step `until`, the state there, and what is told of it."""
    run = open_run(config, folder)
    events = go(run, Spoil(spoilt, 1e4), Stop(until))
    skipped = [event.step for event in events if isinstance(event, Step) and event.skipped]
    assert same_on_all_ranks(skipped)
    return skipped, tensors(run), [event.text for event in events if isinstance(event, Notice)]


def test_a_run_that_goes_on_decides_as_an_undisturbed_one(ranks: Any, tmp_path: Path) -> None:
    """The history is just long enough when both parts of the run count."""
    config, spoilt, whole, parts = looping(), [18, 20], tmp_path / "whole", tmp_path / "parts"
    undisturbed = ranks(2, spoilt_run, config, str(whole), spoilt, 22)
    first = ranks(2, spoilt_run, config, str(parts), spoilt, 19)
    second = ranks(2, spoilt_run, config, str(parts), spoilt, 22)
    for (every, state, notices), (one, _, _), (two, resumed, _) in zip(
        undisturbed, first, second, strict=True
    ):
        assert every == [19, 21] == one + two
        assert notices[0].startswith("step 19 was skipped by the guard: its gradient's norm was")
        assert len(notices) == 2
        assert state.keys() == resumed.keys()
        for name in state:
            assert torch.equal(state[name].nan_to_num(), resumed[name].nan_to_num()), name
        assert state["updates"] == 20
