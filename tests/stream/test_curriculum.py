"""Phases: what a run's configuration plans, what it went through, and orders that go on across them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phases import CORPUS, phase

from panthalassa.config import Config
from panthalassa.stream.curriculum import (
    Curriculum,
    Phase,
    change,
    differences,
    planned,
    resume,
    until,
)
from panthalassa.stream.order import Mixture


def walk(curriculum: Curriculum, steps: range) -> list[tuple[int, ...]]:
    """Every sample of `steps` in order: length, domain, epoch, shard, row group, row, part."""
    found = []
    for piece in curriculum.pieces(steps):
        size = piece.phase.global_batch
        every = np.repeat(np.array(piece.steps), size), np.tile(np.arange(size), len(piece.steps))
        place = piece.order.locate(piece.positions(*every))
        columns = (place.domain, place.epoch, place.shard, place.row_group, place.row, place.part)
        length = np.full(len(place), piece.phase.sequence_length)
        found += [tuple(row) for row in np.stack((length, *columns), axis=1).tolist()]
    return found


def test_a_later_phase_takes_what_it_does_not_say_from_the_first(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        tmp_path,
        "stream.weights={aa: 1, bb: 3}",
        "stream.phases=[{from_step: 5, temperature: 2}, {from_step: 9, sequence_length: 32}]",
    )
    first, second, third = planned(config, "corpus")
    assert (first.first_step, second.first_step, third.first_step) == (0, 5, 9)
    assert (first.weights, second.weights, third.weights) == (
        {"aa": 1, "bb": 3},
        None,
        first.weights,
    )
    assert (second.temperature, third.temperature) == (2.0, 1.0)
    assert [p.sequence_length for p in (first, second, third)] == [64, 64, 32]


def test_phases_change_the_share_of_images_alone(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        tmp_path,
        "stream.image_share=0.5",
        "stream.phases=[{from_step: 5, image_share: 0}, {from_step: 9, temperature: 3}]",
    )
    first, second, third = planned(config, "corpus")
    assert [p.image_share for p in (first, second, third)] == [0.5, 0.0, 0.5]
    assert second.mixture == Mixture(image_share=0.0)
    assert third.mixture == Mixture(3.0, image_share=0.5)


def test_a_phase_without_a_share_of_images_is_written_as_it_always_was() -> None:
    assert "image_share" not in phase(0).model_dump()
    shared = phase(0, image_share=0.5)
    assert Phase.model_validate_json(shared.model_dump_json()) == shared


@given(st.integers(0, 40), st.integers(1, 60))
def test_pieces_cover_the_steps_once_and_in_order(start: int, count: int) -> None:
    curriculum = Curriculum([phase(0), phase(7, seed=2), phase(30)], CORPUS)
    steps = [step for p in curriculum.pieces(range(start, start + count)) for step in p.steps]
    assert steps == list(range(start, start + count))
    for piece in curriculum.pieces(range(start, start + count)):
        assert {curriculum.phase(step) for step in piece.steps} == {piece.phase}


def test_a_phase_of_the_same_samples_goes_on_where_the_last_one_stopped() -> None:
    """Two epochs of the smaller domain pass; in none does a sample come twice."""
    mixtures = {"weights": {"aa": 1.0, "bb": 5.0}}, {"temperature": 3.0}, {"weights": {"aa": 1.0}}
    phases = [phase(10 * number, **mixture) for number, mixture in enumerate(mixtures)]
    found = walk(Curriculum(phases, CORPUS), range(0, 30))
    assert len(found) == 120
    assert len(set(found)) == len(found)
    by_epoch = {(domain, epoch) for _, domain, epoch, *_ in found}
    for domain, epoch in by_epoch:
        if (domain, epoch + 1) in by_epoch:
            whole = [row for row in found if row[1:3] == (domain, epoch)]
            assert len(whole) == (30, 50)[domain]


def test_another_sequence_length_has_epochs_of_its_own_and_the_first_goes_on_after_it() -> None:
    phases = [phase(0), phase(5, sequence_length=8), phase(10)]
    found = walk(Curriculum(phases, CORPUS), range(0, 15))
    without = walk(Curriculum([phase(0)], CORPUS), range(0, 10))
    assert found[:20] == without[:20]
    assert {row[0] for row in found[20:40]} == {8}
    assert len(set(found)) == len(found)


def test_phases_of_another_corpus_have_no_order_here() -> None:
    phases = [phase(0, corpus="another"), phase(5)]
    curriculum = Curriculum(phases, CORPUS)
    assert [piece.steps for piece in curriculum.pieces(range(0, 9))] == [range(5, 9)]
    assert curriculum.samples(9) == 36


def test_samples_count_what_each_phase_takes() -> None:
    curriculum = Curriculum([phase(0), phase(10, global_batch=7)], CORPUS)
    assert [curriculum.samples(step) for step in (0, 1, 10, 12)] == [0, 4, 40, 54]


def test_a_run_may_plan_another_future_but_not_another_present() -> None:
    history = [phase(0), phase(10, temperature=2.0)]
    assert differences(history, [phase(0), phase(10, temperature=2.0), phase(50)], 20) == []
    assert differences(history, [phase(0, temperature=2.0)], 20) == []
    assert differences(history, [phase(0), phase(15, temperature=2.0)], 20) == []
    assert differences(history, [phase(0)], 10) == []
    assert differences(history, [phase(0)], 11) == ["temperature is 2.0 there, 1.0 here"]
    (line,) = differences(history, [phase(0, temperature=2.0, seed=9)], 20)
    assert line == "seed is 1 there, 9 here"
    assert differences(history, [phase(0, seed=3)], 0) == []


def test_what_a_run_went_through_is_kept_when_it_goes_on() -> None:
    history = [phase(0), phase(10, temperature=2.0), phase(90)]
    plan = [phase(0, temperature=2.0), phase(30, seed=7)]
    assert resume(history, plan, 20) == [*history[:2], plan[1]]
    assert resume([phase(0), phase(30)], plan, 30) == [phase(0), plan[1]]


def test_a_change_begins_a_phase_once() -> None:
    """A crash right after it, and a resume with the same setting, do not begin another."""
    plan = [phase(0, seed=9), phase(40, seed=8)]
    phases = change([phase(0)], plan, 20)
    assert phases == [phase(0), phase(20, seed=9), phase(40, seed=8)]
    assert change([phase(0)], plan, 20) == phases
    assert differences(phases, plan, 25) == []
    assert resume(phases, plan, 25) == phases
    assert until(phases, 20) == [phase(0)]


@pytest.mark.parametrize("step", [0, 3])
def test_a_change_replaces_phases_that_were_only_planned(step: int) -> None:
    assert change([phase(0), phase(5)], [phase(0, seed=2)], step) == [
        *until([phase(0)], step),
        phase(step, seed=2),
    ]
