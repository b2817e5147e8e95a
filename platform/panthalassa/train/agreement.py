"""Ranks that decide together.

A rank that meets an error the others do not see must not leave them waiting in a collective. So errors
that a user can mend are collected at agreed places, and raised on all ranks alike. Everything here
travels over gloo on the CPU, and so never waits for a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from panthalassa.errors import PanthalassaError


def total(*values: float) -> list[float]:
    """The sums of `values` over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def raise_together(error: Exception | None) -> None:
    """Raise on every rank when it failed on any: a PanthalassaError that names the first."""
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, None if error is None else str(error))
    first = next((text for text in errors if text is not None), None)
    if first is not None:
        raise PanthalassaError(first) from error


@contextmanager
def together() -> Iterator[None]:
    """A block without collectives in which any rank may fail: then all do, behind it."""
    error: Exception | None = None
    try:
        yield
    except (PanthalassaError, OSError) as caught:
        error = caught
    raise_together(error)
