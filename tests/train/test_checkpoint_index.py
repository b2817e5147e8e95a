"""The index of a checkpoint, which is a pickle: every Python's is read, and nothing else is called."""

import io
import pickle
from typing import Any

import pytest
import torch

from panthalassa.errors import CheckpointError
from panthalassa.train.tensor_files import _MEM_FORMAT_ENCODING, Unpickler


class Call:
    """In a pickle: a function and its arguments, called when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def loaded(call: Call) -> Any:
    return Unpickler(io.BytesIO(pickle.dumps(call))).load()


def test_the_member_of_an_enumeration_is_read_by_value_and_by_name() -> None:
    """Python 3.11.2 stores the name, 3.11.7 the value."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    assert loaded(Call(_MEM_FORMAT_ENCODING, member.value)) is member
    assert loaded(Call(getattr, _MEM_FORMAT_ENCODING, member.name)) is member


def test_nothing_else_is_got_at_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata asks for mro of"):
        loaded(Call(getattr, torch.Size, "mro"))
