"""Ranks that decide together.

A rank that meets an error the others do not see must not leave them waiting in a collective. So errors
that a user can mend are collected at agreed places, and raised on all ranks alike. Everything here
travels over gloo on the CPU, and so never waits for a GPU. Threads that communicate beside the training
loop do so over a `group` of their own; without one it is the loop's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed as dist

from panthalassa.errors import PanthalassaError

T = TypeVar("T")
Group = dist.ProcessGroup | None


def total(*values: float) -> list[float]:
    """The sums of `values` over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def everywhere(mine: Sequence[T], group: Group = None) -> list[T]:
    """The items of all ranks, in the order of the ranks."""
    every: list[Sequence[T]] = [()] * dist.get_world_size()
    dist.all_gather_object(every, mine, group=group)
    return [item for items in every for item in items]


def agreed(error: PanthalassaError) -> PanthalassaError:
    """The error, marked as one that all ranks raise together."""
    error.agreed = True
    return error


def raise_together(error: Exception | None, group: Group = None) -> None:
    """Raise on every rank when it failed on any: the PanthalassaError of the first, or one that
    names its error."""
    mine: tuple[type[PanthalassaError], str] | None = None
    if error is not None:
        kind = type(error) if isinstance(error, PanthalassaError) else PanthalassaError
        mine = kind, str(error)
    errors = [mine] * dist.get_world_size()
    dist.all_gather_object(errors, mine, group=group)
    first = next((found for found in errors if found is not None), None)
    if first is not None:
        kind, text = first
        raise agreed(kind(text)) from error


@contextmanager
def together(group: Group = None) -> Iterator[None]:
    """A block without collectives in which any rank may fail: then all do, behind it."""
    error: Exception | None = None
    try:
        yield
    except (PanthalassaError, OSError) as caught:
        error = caught
    raise_together(error, group)
