"""The weights of a run's newest good checkpoint, without ranks: verified, then read in blocks of rows.

A checkpoint's files hold parts of tensors as the ranks had them (`train/tensor_files.py`). A block of
rows is put together from the parts that it lies in, of which each gives some rows in one read. So no
more than a block is in memory, however large the tensor and however many ranks there were.

A run that trains adapters has the weights beneath them in a checkpoint of their own. What is read of it
are the sums of both.
"""

import math
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panthalassa.config_finetune import Lora
from panthalassa.errors import CheckpointError, CorruptError, PanthalassaError
from panthalassa.model.lora import ADAPTERS
from panthalassa.storage import Storage
from panthalassa.train import checkpoint
from panthalassa.train.base import BASE
from panthalassa.train.checkpoint import Commit, folder
from panthalassa.train.restore import THREADS, check_file
from panthalassa.train.staging import staged
from panthalassa.train.tensor_files import INDEX, WEIGHTS, Reader

BLOCK = 4 << 20
"""Bytes that are read at once."""


class Weights:
    """Of a checkpoint whose index and files of weights are verified, in a local folder."""

    def __init__(self, name: str, commit: Commit, directory: Path) -> None:
        self.name, self.commit, self.directory = name, commit, directory
        index = Reader(directory, set(commit.files)).read_metadata()
        self._tensors: dict[str, Any] = index.state_dict_metadata
        self._places: dict[tuple[str, torch.Size], Any] = {
            (key.fqn, key.offset): place
            for key, place in index.storage_data.items()
            if key.fqn.startswith(WEIGHTS)
        }

    def files(self) -> set[str]:
        """Those that hold weights."""
        return {place.relative_path for place in self._places.values()}

    def dtype(self, parameter: str) -> torch.dtype:
        """In which a parameter is stored. Raises CheckpointError when it is not there."""
        found: torch.dtype = self._stored(parameter).properties.dtype
        return found

    def blocks(self, parameter: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """The parameter [shape], some rows after the other. Raises CheckpointError when it is not there,
        or of another shape."""
        tensor = self._stored(parameter)
        if tuple(tensor.size) != shape:
            raise CheckpointError(
                f"{self.directory}: {parameter} is {list(tensor.size)}, expected {list(shape)}"
            )
        dtype, width = tensor.properties.dtype, math.prod(shape[1:])
        rows = max(1, BLOCK // (width * dtype.itemsize))
        for first in range(0, shape[0], rows):
            block = torch.empty(min(rows, shape[0] - first), width, dtype=dtype)
            filled = sum(self._fill(block, first, parameter, chunk) for chunk in tensor.chunks)
            if filled != block.numel():
                raise CheckpointError(f"{self.directory}: parts of {parameter} are missing")
            yield block

    def _stored(self, parameter: str) -> Any:
        name = WEIGHTS + parameter
        if name not in self._tensors:
            raise CheckpointError(f"{self.directory} holds no {parameter}")
        return self._tensors[name]

    def _fill(self, block: Tensor, first: int, parameter: str, chunk: Any) -> int:
        """Copy what a chunk has of the block, which begins with row `first`; returns how many numbers
        that were."""
        offsets, sizes = [*chunk.offsets, 0], [*chunk.sizes, 1]
        start, end = max(first, offsets[0]), min(first + len(block), offsets[0] + sizes[0])
        width = math.prod(sizes[1:])
        if start >= end or not width:
            return 0
        place = self._places[WEIGHTS + parameter, chunk.offsets]
        target = block[start - first : end - first, offsets[1] : offsets[1] + width]
        part = target if target.is_contiguous() else torch.empty_like(target)
        skipped = (start - offsets[0]) * width * block.dtype.itemsize
        with (self.directory / place.relative_path).open("rb", buffering=0) as file:
            file.seek(place.offset + skipped)
            read_whole(file, as_bytes(part))
        if part is not target:
            target.copy_(part)
        return part.numel()


class Merged(Weights):
    """Of a run that trains adapters: W + (alpha / rank) B A (Hu et al. 2021) of each adapted matrix,
    computed in fp32 and kept in the type of W. Besides a block of W, one adapter is in memory."""

    def __init__(self, adapters: Weights, base: Weights, lora: Lora) -> None:
        super().__init__(adapters.name, adapters.commit, adapters.directory)
        self.base, self.rank, self.scale = base, lora.rank, lora.alpha / lora.rank

    def dtype(self, parameter: str) -> torch.dtype:
        return self.base.dtype(parameter)

    def blocks(self, parameter: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        a, b = (f"{parameter.removesuffix('.weight')}.{adapter}" for adapter in ADAPTERS)
        if WEIGHTS + a not in self._tensors:
            yield from self.base.blocks(parameter, shape)
            return
        whole_a = torch.cat([*super().blocks(a, (self.rank, shape[1]))])
        raised = torch.cat([*super().blocks(b, (shape[0], self.rank))])
        first = 0
        for block in self.base.blocks(parameter, shape):
            update = raised[first : first + len(block)] @ whole_a
            first += len(block)
            yield (block.float() + self.scale * update).to(block.dtype)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def read_whole(file: Any, view: memoryview) -> None:
    """Fill the memory from an unbuffered file. Raises CheckpointError when that ends too early."""
    while len(view):
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{file.name} ends too early")
        view = view[count:]


@contextmanager
def newest_good(
    run: Storage, staging: str | None, tell: Callable[[str], None]
) -> Iterator[Weights]:
    """The weights of the newest checkpoint of a run that is what was written, for the block.

    Nothing of the run is changed: what is corrupt is told and left to the next command that trains.
    Raises CheckpointError when there is none.
    """
    names, unfinished = checkpoint.candidates(run)
    corrupt: list[str] = []
    with ExitStack() as stack:
        found = None
        for name in reversed(names):
            try:
                found = stack.enter_context(verified(run, name, staging))
                break
            except CorruptError as error:
                corrupt.append(str(error))
        if corrupt and not found:
            raise checkpoint.all_corrupt(run, corrupt)
        if not found:
            raise no_checkpoint(run)
        told = [f"{run.uri}/{name} has no commit and is not used" for name in unfinished]
        for text in [*corrupt, *told]:
            tell(text)
        if corrupt or told:
            tell(f"the newest good checkpoint is {run.uri}/{found.name}")
        if lora := found.commit.lora:
            base = stack.enter_context(verified(run.below(BASE), folder(0), staging))
            if base.commit.sha256 != found.commit.model["base"]:
                raise CorruptError(
                    f"{base.directory} is not what the adapters of {run.uri}/{found.name} were trained "
                    f"on: the SHA-256 of its commit is {base.commit.sha256}, and theirs says "
                    f"{found.commit.model['base']}. Restore the folder from a copy."
                )
            found = Merged(found, base, lora)
        yield found


def no_checkpoint(run: Storage) -> PanthalassaError:
    return PanthalassaError(
        f"{run.uri} has no checkpoint. A run is a folder such as runs/laptop, and has one when it has "
        "trained for a while."
    )


@contextmanager
def verified(run: Storage, name: str, staging: str | None) -> Iterator[Weights]:
    """The weights of a checkpoint, for the block. Raises CorruptError when it is not what was written,
    CheckpointError when it can not be read."""
    commit, source = checkpoint.read_commit(run, name), run.below(name)
    with ExitStack() as stack:
        directory = Path(source.root)
        if not source.is_local:
            directory = stack.enter_context(staged(staging, f"weights-{secrets.token_hex(8)}"))

        def check(file: str) -> None:
            check_file(source, directory / file, commit.files[file])

        if INDEX not in commit.files:
            raise CorruptError(f"{source.uri} has no {INDEX}")
        check(INDEX)
        weights = Weights(name, commit, directory)
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(check, weights.files()):
                pass
        yield weights
