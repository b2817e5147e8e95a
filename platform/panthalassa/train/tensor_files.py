"""The files of a checkpoint: torch DCP's plan and index, and tensors as plain bytes.

DCP decides which rank stores which part of which tensor, and finds the parts again for any other
mesh. Each rank writes a few files at once, `__<rank>_<n>.distcp`: one of weights, which is all that an
evaluation or an export needs, and one for each moment of the optimizer. In a file are the rank's parts
one after the other, as they lie in memory. DCP's own files hold a zip archive for each tensor, whose
second checksum and copies took a third of the time; ours are hashed on their way to the disk, so that
nothing is read back, and mapped when they are read.

The index, `.metadata`, is DCP's own, and a pickle: shapes, dtypes, and where each part lies. It is read
by an unpickler that knows the few classes which DCP puts there, and no function but the one that
rebuilds an enumeration's member. The tensors are no pickles. So loading runs no code from a checkpoint.
"""

import hashlib
import io
import mmap
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from panthalassa.errors import CheckpointError
from panthalassa.train.hashed_file import HashedFile

INDEX = ".metadata"
WEIGHTS = "weight."
"""How the names of weights begin."""
KINDS = (WEIGHTS, "exp_avg.", "exp_avg_sq.")
"""Of a file each, by the beginnings of names; what is small is in the last."""
ALIGNMENT = 64


class Writer(FileSystemWriter):
    """DCP's writer for this rank; `digests` then holds the SHA-256 of the files that it wrote."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        names = [f"{plan.storage_data.prefix}{number}.distcp" for number in range(len(KINDS))]
        shares: list[list[WriteItem]] = [[] for _ in KINDS]
        for item in plan.items:
            shares[_kind(item.index.fqn)].append(item)
        with ThreadPoolExecutor(len(KINDS)) as pool:
            written = list(pool.map(partial(self._write, planner), names, shares))
        return _done([result for results in written for result in results])

    def _write(self, planner: SavePlanner, name: str, items: list[WriteItem]) -> list[WriteResult]:
        results = []
        with HashedFile(self.directory / name) as file:
            for item in items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                offset, data = file.align(ALIGNMENT), _bytes(tensor)
                file.write(data)
                place = _StorageInfo(name, offset, len(data))
                results.append(WriteResult(item.index, len(data), place))
        self.digests[name] = file.digest
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        content = (self.directory / INDEX).read_bytes()
        self.digests[INDEX] = hashlib.sha256(content).hexdigest()


class Reader(FileSystemReader):
    """DCP's reader, with an index that can not run code and leads only to `files`, which were hashed."""

    def __init__(self, directory: Path, files: set[str]) -> None:
        super().__init__(directory)
        self.directory = directory
        self._files = files
        self._tensors: dict[str, Any] = {}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = Unpickler(io.BytesIO((self.directory / INDEX).read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{self.directory / INDEX} is not the index of a checkpoint")
        for entry in (metadata.storage_data or {}).values():
            if entry.relative_path not in self._files:
                raise CheckpointError(
                    f"{INDEX} names {entry.relative_path}, which the commit does not"
                )
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        self._tensors = metadata.state_dict_metadata
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        maps: dict[str, mmap.mmap] = {}
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            name = place.relative_path
            if name not in maps:
                with (self.directory / name).open("rb") as file:
                    # A private copy, because torch wants memory that it might write to.
                    maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            stored = self._stored(item.storage_index, maps[name], place.offset)
            part = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        return _done(None)

    def _stored(self, index: MetadataIndex, memory: mmap.mmap, offset: int) -> Tensor:
        """The part of a tensor that a rank has stored, where it lies."""
        tensor = self._tensors[index.fqn]
        assert isinstance(tensor, TensorStorageMetadata)
        assert index.index is not None
        sizes, dtype = tensor.chunks[index.index].sizes, tensor.properties.dtype
        if sizes.numel() == 0:
            return torch.empty(sizes, dtype=dtype)
        count = sizes.numel()
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(sizes)


def _kind(name: str) -> int:
    """The number of the file of a tensor."""
    return next((n for n, kind in enumerate(KINDS) if name.startswith(kind)), len(KINDS) - 1)


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class Unpickler(pickle.Unpickler):
    """Knows the classes of DCP's index and nothing else."""

    ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),  # Python 3.13
            ("torch", "Size"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "Metadata"),
            ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
            ("torch.distributed.checkpoint.metadata", "StorageMeta"),
            ("torch.distributed.checkpoint.metadata", "TensorProperties"),
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
            ("torch.serialization", "_get_layout"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _memory_format  # so Python 3.11.2 stores the members of an enumeration
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise CheckpointError(f"{INDEX} names {module}.{name}, which no checkpoint of ours holds")


def _memory_format(kind: object, name: str) -> Any:
    if kind is not _MEM_FORMAT_ENCODING:
        raise CheckpointError(
            f"{INDEX} asks for {name} of {kind}, which no checkpoint of ours holds"
        )
    return _MEM_FORMAT_ENCODING[name]
