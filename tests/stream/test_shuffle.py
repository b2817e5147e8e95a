"""Feistel networks: permutations of any number of things, each as likely as another, and their keys."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import examples, seeds

from panthalassa.stream.shuffle import derive, permute, permute_back


@examples
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_a_feistel_network_permutes_any_number_of_things(size: int, key: int) -> None:
    numbers, one = np.arange(size), np.array([size])
    keys = np.array([key], np.uint64)
    found = permute(numbers, one, keys)
    assert (np.sort(found) == numbers).all()
    assert (permute_back(found, one, keys) == numbers).all()


@examples
@given(st.lists(st.tuples(st.integers(1, 2**53), st.integers(0, 2**64 - 1)), min_size=1), seeds)
def test_each_number_may_have_its_own_size_and_key(
    several: list[tuple[int, int]], number: int
) -> None:
    size = np.array([size for size, _ in several])
    key = np.array([key for _, key in several], np.uint64)
    numbers = number % size
    found = permute(numbers, size, key)
    assert ((found >= 0) & (found < size)).all()
    alone = [permute(numbers[[i]], size[[i]], key[[i]])[0] for i in range(len(several))]
    assert found.tolist() == alone
    assert (permute_back(found, size, key) == numbers).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_a_few_things_are_about_as_frequent(size: int) -> None:
    keys = derive(np.array([5], np.uint64), np.arange(20_000))
    numbers = np.tile(np.arange(size), len(keys))
    found = permute(numbers, np.array([size]), np.repeat(keys, size)).reshape(-1, size)
    counts = Counter(map(tuple, found.tolist()))
    expected = len(keys) / math.factorial(size)
    assert len(counts) == math.factorial(size)
    assert expected / 2 < min(counts.values()) <= max(counts.values()) < 2 * expected


@pytest.mark.parametrize("size", [7, 16, 17, 100, 128])
def test_each_thing_comes_to_each_place_equally_often(size: int) -> None:
    keys = derive(np.array([9], np.uint64), np.arange(3000))
    numbers = np.tile(np.arange(size), len(keys))
    found = permute(numbers, np.array([size]), np.repeat(keys, size))
    seen = np.zeros((size, size))
    np.add.at(seen, (numbers, found), 1)
    expected = len(keys) / size
    assert ((seen - expected) ** 2 / expected).sum() / (size - 1) ** 2 < 1.5


def test_keys_follow_one_another_as_in_splitmix64() -> None:
    """The first numbers of the published generator from the seed 0."""
    found = derive(np.array([0], np.uint64), np.arange(3)).tolist()
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
