"""Any number of data-parallel ranks shares a step's samples: none lost, none twice, none waiting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.stream.partition import Partition

GLOBAL_BATCHES = (1, 2, 7, 8, 63, 64, 65, 127, 128, 129, 130, 258, 512, 1000, 4096)


def shares(global_batch: int, dp_size: int) -> list[range]:
    """Each rank's offsets within a step."""
    ranks = [Partition(global_batch, dp_size, rank) for rank in range(dp_size)]
    return [range(rank.start, rank.start + rank.samples) for rank in ranks]


def check_shares(global_batch: int, dp_size: int) -> None:
    found = shares(global_batch, dp_size)
    assert [offset for share in found for offset in share] == list(range(global_batch))
    fair = {global_batch // dp_size, -(-global_batch // dp_size)}
    assert {len(share) for share in found} <= fair


def check_micro_batches(global_batch: int, dp_size: int, micro_batch: int) -> None:
    ranks = [Partition(global_batch, dp_size, rank) for rank in range(dp_size)]
    (count,) = {rank.micro_batches(micro_batch) for rank in ranks}
    for rank in ranks:
        assert 0 <= count * micro_batch - rank.samples <= micro_batch
    fullest = max(rank.samples for rank in ranks)
    assert (count - 1) * micro_batch < fullest <= count * micro_batch


@pytest.mark.parametrize("global_batch", GLOBAL_BATCHES)
def test_every_dp_size_shares_out_every_sample_once_and_fairly(global_batch: int) -> None:
    for dp_size in range(1, 130):
        check_shares(global_batch, dp_size)


@given(st.integers(1, 5000), st.integers(1, 600))
def test_every_batch_is_shared_out_once_and_fairly(global_batch: int, dp_size: int) -> None:
    check_shares(global_batch, dp_size)


@pytest.mark.parametrize("global_batch", GLOBAL_BATCHES)
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 64])
def test_all_ranks_run_the_same_micro_batches_and_none_pads_more_than_one(
    global_batch: int, micro_batch: int
) -> None:
    for dp_size in range(1, 130):
        check_micro_batches(global_batch, dp_size, micro_batch)


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 64))
def test_padding_is_never_more_than_one_micro_batch_a_rank(
    global_batch: int, dp_size: int, micro_batch: int
) -> None:
    check_micro_batches(global_batch, dp_size, micro_batch)


@given(st.integers(1, 200), st.integers(1, 130), st.integers(0, 10**15), st.integers(1, 5))
def test_the_ranks_read_every_position_of_their_steps_once_and_in_order(
    global_batch: int, dp_size: int, first_step: int, steps: int
) -> None:
    by_rank = []
    for rank in range(dp_size):
        partition = Partition(global_batch, dp_size, rank)
        if partition.samples:
            indices = np.arange(steps * partition.samples)
            step, sample = partition.steps(indices)
            positions = (first_step + step) * global_batch + sample
            by_rank.append(positions.reshape(steps, partition.samples))
    together = np.concatenate(by_rank, axis=1)
    start = first_step * global_batch
    expected = np.arange(start, start + steps * global_batch).reshape(steps, global_batch)
    assert (together == expected).all()


def test_seven_samples_over_three_ranks() -> None:
    assert shares(7, 3) == [range(0, 3), range(3, 5), range(5, 7)]
    assert [Partition(7, 3, rank).micro_batches(2) for rank in range(3)] == [2, 2, 2]
    step, sample = Partition(7, 3, 1).steps(np.array([0, 1, 2, 3]))
    assert (step.tolist(), sample.tolist()) == ([0, 0, 1, 1], [3, 4, 3, 4])


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_ranks_beyond_the_samples_run_one_micro_batch_of_padding(micro_batch: int) -> None:
    for dp_size in range(2, 130):
        for global_batch in {1, dp_size // 2, dp_size - 1}:
            ranks = [Partition(global_batch, dp_size, rank) for rank in range(dp_size)]
            assert [rank.samples for rank in ranks] == [1] * global_batch + [0] * (
                dp_size - global_batch
            )
            assert {rank.micro_batches(micro_batch) for rank in ranks} == {1}


def test_a_rank_without_samples_is_in_no_step() -> None:
    beyond = Partition(7, 9, 8)
    assert [part.tolist() for part in beyond.steps(np.arange(0))] == [[], []]
    with pytest.raises(ValueError, match="rank 8 of 9 has no samples: a step has 7"):
        beyond.steps(np.arange(1))
