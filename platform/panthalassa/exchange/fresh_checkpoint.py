"""The checkpoint of step 0, with weights from elsewhere: from files of safetensors, or from another run.

Its files are those of any checkpoint (`train/tensor_files.py`), without ranks. Weights keep their type,
so that an export gives the same bytes back; ranks load them into fp32. A tensor is one run of bytes, and
its parts are some rows each, of which a rank reads those that it needs. The moments of an optimizer that
has done nothing are all zero: all their parts are the same block of zeros. Weights that are loaded and
not trained on their own stand there without an optimizer.
"""

import hashlib
import pickle
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from panthalassa.config_model import Model
from panthalassa.exchange.weights import BLOCK, as_bytes
from panthalassa.model.llava import parameters
from panthalassa.model.safetensors import Entry, divide
from panthalassa.storage import Storage
from panthalassa.train.checkpoint import COMMIT, Commit, folder, remove
from panthalassa.train.guard import NormGuard
from panthalassa.train.hashed_file import HashedFile
from panthalassa.train.staging import staged
from panthalassa.train.tensor_files import ALIGNMENT, INDEX

FILE = 128 << 20
"""Bytes of a file of weights, or those of a tensor: files are verified side by side."""
PART = 64 << 20
"""Bytes of a part in fp32, at most."""


class Source(Protocol):
    """Where weights lie: `weights.Weights` and `llama_folder.LlamaFolder`."""

    def dtype(self, parameter: str) -> torch.dtype: ...

    def blocks(self, parameter: str, shape: tuple[int, ...]) -> Iterator[Tensor]: ...


def write_checkpoint(
    run: Storage, model: Model, source: Source, staging: str | None, optimizer: bool
) -> Commit:
    """Write the checkpoint of step 0 in place of a torn one; returns its commit.

    staging: a local folder for files on their way to object storage. optimizer: whether a run can go on
    from it. Raises OSError.
    """
    remove(run, folder(0))
    target = run.below(folder(0))
    with ExitStack() as stack:
        place = Path(target.root)
        if target.is_local:
            place.mkdir(parents=True)
        else:
            place = stack.enter_context(staged(staging, f"fresh-{secrets.token_hex(8)}"))
        checkpoint = FreshCheckpoint(place)
        entries = [Entry(p.ours, source.dtype(p.ours), p.shape) for p in parameters(model)]
        for share in divide(entries, FILE).values():
            checkpoint.add(source, share)
        if optimizer:
            checkpoint.add_optimizer()
        checkpoint.finish()
        if not target.is_local:
            for name in checkpoint.digests:
                target.upload(name, place / name)
    commit = Commit(
        model=model.identity(),
        phases=[],
        step=0,
        samples=0,
        evaluations=[],
        healthy=True,
        files=checkpoint.digests,
    ).sealed()
    target.create(COMMIT, (commit.model_dump_json(indent=1) + "\n").encode())
    return commit


class FreshCheckpoint:
    """The files of a checkpoint, one after the other, and their index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.digests: dict[str, str] = {}
        self._tensors: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, source: Source, parameters: Iterable[Entry]) -> None:
        """Write a file of weights."""
        with self._file() as file:
            for entry in parameters:
                start = file.align(ALIGNMENT)
                for block in source.blocks(entry.name, entry.shape):
                    file.write(as_bytes(block))
                self._enter(f"weight.{entry.name}", entry.dtype, entry.shape, file.name, start)
                self._shapes[entry.name] = entry.shape

    def add_optimizer(self) -> None:
        """Write what a new optimizer of these weights and a new guard hold."""
        guard = NormGuard(torch.device("cpu"))
        rest: dict[str, Tensor] = {
            "rng": torch.Generator().manual_seed(0).get_state(),
            "guard.norms": guard.norms,
            "guard.skips": guard.skips,
            "updates": torch.zeros(()),
        }
        with self._file() as file:
            for name, tensor in rest.items():
                self._enter(
                    name, tensor.dtype, tuple(tensor.shape), file.name, file.align(ALIGNMENT)
                )
                file.write(as_bytes(tensor))
            zeros = file.align(ALIGNMENT)
            most = max(part.size for shape in self._shapes.values() for part in _parts(shape))
            block = memoryview(bytes(BLOCK))
            for offset in range(0, most, BLOCK):
                file.write(block[: most - offset])
            for name, shape in self._shapes.items():
                for moment in ("exp_avg", "exp_avg_sq"):
                    key = f"{moment}.{name}"
                    self._enter(key, torch.float32, shape, file.name, zeros, shared=True)

    def finish(self) -> None:
        """Write the index."""
        content = pickle.dumps(Metadata(self._tensors, storage_data=self._places))
        (self.directory / INDEX).write_bytes(content)
        self.digests[INDEX] = hashlib.sha256(content).hexdigest()

    def _enter(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        file: str,
        start: int,
        shared: bool = False,
    ) -> None:
        """Note where the parts of a tensor lie: one behind the other, or all in the same place."""
        chunks = []
        for part in _parts(shape):
            length = part.size // torch.float32.itemsize * dtype.itemsize
            chunks.append(ChunkStorageMetadata(part.offsets, part.sizes))
            index = MetadataIndex(name, part.offsets)
            self._places[index] = _StorageInfo(file, start, length)
            start += 0 if shared else length
        properties = TensorProperties(dtype=dtype)
        self._tensors[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)

    @contextmanager
    def _file(self) -> Iterator[HashedFile]:
        with HashedFile(self.directory / f"__0_{len(self.digests)}.distcp") as file:
            yield file
        self.digests[file.name] = file.digest


@dataclass(frozen=True)
class _Part:
    """Some rows of a tensor."""

    offsets: torch.Size
    sizes: torch.Size

    @property
    def size(self) -> int:
        """Bytes in fp32."""
        return self.sizes.numel() * torch.float32.itemsize


def _parts(shape: tuple[int, ...]) -> Iterator[_Part]:
    if not shape:
        yield _Part(torch.Size(()), torch.Size(()))
        return
    row = torch.Size(shape[1:])
    rows = max(1, PART // (row.numel() * torch.float32.itemsize))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        yield _Part(torch.Size((first, *(0 for _ in row))), torch.Size((count, *row)))
