"""Checkpoints: the whole state of a run at a step, written by all ranks, readable by any number.

`step-00000100/` holds torch DCP's files, one or more a rank, and `checkpoint.json`. That one is
written last and is the commit: it says what the state belongs to (model, corpus, order, step, samples)
and carries the SHA-256 of every other file, taken by the rank that wrote it. A folder without it is a
leftover of a crash and is removed. Only tensors are stored, and DCP's index, which is a pickle, is read
by an unpickler that knows its few classes alone: loading a checkpoint runs no code from it.
"""

import hashlib
import io
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from panthalassa.errors import CheckpointError, PanthalassaError
from panthalassa.model.transformer import parameters_by_name
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Phase, change, differences, resume
from panthalassa.train.agreement import agreed, together
from panthalassa.train.events import Evaluated

COMMIT = "checkpoint.json"

FileName = Annotated[str, Field(pattern=r"^(\.metadata|__\d+_\d+\.distcp)$")]
"""The files that DCP writes: a commit can name nothing outside its folder."""


class Commit(BaseModel):
    """The content of checkpoint.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: Literal[2] = 2
    model: dict[str, Any]
    """The shape of the model."""
    phases: list[Phase]
    """The order of the samples: what the run went through, and what it planned."""
    step: int
    """Optimizer steps done."""
    samples: int
    """Samples consumed: with the phases, the whole state of the stream."""
    evaluations: list[Evaluated]
    """Held-out losses so far."""
    files: dict[FileName, str]
    """SHA-256 by file name."""
    sha256: str = ""
    """Of all the other fields: the commit, too, is verified."""

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()

    def sealed(self) -> "Commit":
        return self.model_copy(update={"sha256": self.digest()})


def folder(step: int) -> str:
    return f"step-{step:08d}"


def committed(run: Storage) -> list[str]:
    """The committed checkpoints of a run, oldest first."""
    names = [name for name in run.folders() if name.startswith("step-")]
    return [name for name in names if run.exists(f"{name}/{COMMIT}")]


def read_commit(run: Storage, name: str) -> Commit:
    """Raises CheckpointError when it is not readable."""
    place = f"{run.uri}/{name}/{COMMIT}"
    remedy = f"Remove {run.uri}/{name} to go on from an older one."
    try:
        commit = Commit.model_validate_json(run.read(f"{name}/{COMMIT}"))
    except OSError as error:
        raise CheckpointError(f"{place} can not be read: {error}. {remedy}") from error
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CheckpointError(f"{place} is corrupt: {reason}. {remedy}") from error
    if commit.sha256 != commit.digest() or folder(commit.step) != name:
        raise CheckpointError(f"{place} is corrupt: it is not what its SHA-256 says. {remedy}")
    return commit


def phases_from(
    run: Storage, commit: Commit, model: dict[str, Any], plan: list[Phase], may_change: bool
) -> list[Phase]:
    """The phases of a run that goes on from a checkpoint, with `model` and the phases of `plan`.

    With `may_change`, a plan that does not fit begins as a new phase. Raises CheckpointError when the
    checkpoint has another model, or other data.
    """
    other = [
        f"model.{key} is {value} there, {model.get(key)} here"
        for key, value in commit.model.items()
        if model.get(key) != value
    ]
    changed = differences(commit.phases, plan, commit.step)
    if changed and may_change and not other:
        return change(commit.phases, plan, commit.step)
    if other or changed:
        remedy = "" if other else ", or set stream.on_change=new_phase to begin a new phase"
        raise CheckpointError(
            f"checkpoint {run.uri}/{folder(commit.step)} belongs to another run: "
            f"{'; '.join([*other, *changed])}. "
            f"Choose another run.name, or restore the configuration that made it{remedy}."
        )
    return resume(commit.phases, plan, commit.step)


class State:
    """The tensors of a training run, as DCP saves and loads them in place."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.parameters = dict(parameters_by_name(model))
        self.optimizer = optimizer

    def tensors(self) -> dict[str, Tensor]:
        """By name: weights, AdamW's two moments, and torch's random state."""
        found: dict[str, Tensor] = {"rng": torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                moments.setdefault(key, torch.zeros_like(parameter, requires_grad=False))
                found[f"{key}.{name}"] = moments[key]
            found[f"weight.{name}"] = parameter.detach()
        return found

    def loaded(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take over what DCP wrote into `tensors`, after `step` optimizer steps."""
        torch.set_rng_state(tensors["rng"])
        for parameter in self.parameters.values():
            # AdamW counts in a float32 scalar on the parameter's device.
            self.optimizer.state[parameter]["step"] = torch.tensor(
                float(step), device=parameter.device
            )


def save(run: Storage, state: State, commit: Commit) -> Commit:
    """Write a checkpoint with all ranks; `commit.files` is filled in.

    Raises CheckpointError on every rank. Then the torn one is removed, and nothing older was touched.
    """
    target = run.below(folder(commit.step))
    try:
        with _local(target) as directory:
            with together():
                if target.is_local:
                    directory.mkdir(parents=True, exist_ok=True)
            dcp_save(state.tensors(), storage_writer=FileSystemWriter(directory))
            with together():
                mine = {path.name: _deliver(path, target) for path in _own_files(directory)}
        commit = commit.model_copy(update={"files": _gather(mine)})
        with together():
            if dist.get_rank() == 0:
                target.write(COMMIT, (commit.sealed().model_dump_json(indent=1) + "\n").encode())
    except (CheckpointException, PanthalassaError) as error:
        room = f" ({_free(target):,.0f} MB free on its disk)" if target.is_local else ""
        with together():
            if dist.get_rank() == 0:
                remove(run, folder(commit.step))
        raise agreed(
            CheckpointError(
                f"checkpoint {target.uri} could not be written: {_reason(error)}{room}. "
                "Older checkpoints are untouched. Make room or mend the storage; the same command "
                "then goes on from them."
            )
        ) from error
    return commit


def load(run: Storage, name: str, state: State) -> Commit:
    """Fill the model and the optimizer from a checkpoint, written by any number of ranks.

    Whether it fits is for `phases_from` to say. Raises CheckpointError on every rank when a file is
    missing or is not what its hash says.
    """
    source = run.below(name)
    with together():
        commit = read_commit(run, name)
    with _local(source) as directory:
        with together():
            if source.is_local:
                files = sorted(commit.files)[dist.get_rank() :: dist.get_world_size()]
            else:
                files = list(commit.files)
                for file, expected in commit.files.items():
                    (directory / file).write_bytes(source.read(file, expected))
            for file in files:
                _verify(source, directory / file, commit.files[file])
        tensors = state.tensors()
        try:
            dcp_load(tensors, storage_reader=_Reader(directory, set(commit.files)))
        except CheckpointException as error:
            raise agreed(
                CheckpointError(f"checkpoint {source.uri} can not be loaded: {_reason(error)}")
            ) from error
    state.loaded(tensors, commit.step)
    return commit


def remove(run: Storage, name: str) -> None:
    """Remove a checkpoint, its commit first, so that no half of it ever passes for a whole."""
    for file in (f"{name}/{COMMIT}", name):
        if run.exists(file):
            run.delete(file)


def clean(run: Storage, keep: int | None = None) -> None:
    """Remove what crashed saves left behind, and all but the newest `keep` checkpoints."""
    good = committed(run)
    old = good[:-keep] if keep else []
    torn = [n for n in run.folders() if n.startswith("step-") and n not in good]
    for name in old + torn:
        remove(run, name)


@contextmanager
def _local(storage: Storage) -> Iterator[Path]:
    """A local folder to write to or read from: the storage's own, or a temporary one."""
    if storage.is_local:
        yield Path(storage.root)
    else:
        with tempfile.TemporaryDirectory(prefix="panthalassa-checkpoint-") as directory:
            yield Path(directory)


def _free(storage: Storage) -> float:
    """Megabytes that are free on a local disk. torch reports a full one as a wrong file position."""
    return shutil.disk_usage(Path(storage.root).parent).free / 1e6


def _own_files(directory: Path) -> list[Path]:
    rank = dist.get_rank()
    files = sorted(directory.glob(f"__{rank}_*.distcp"))
    return [*files, directory / ".metadata"] if rank == 0 else files


def _deliver(path: Path, target: Storage) -> str:
    """Bring a file to where it belongs; returns its SHA-256."""
    if not target.is_local:
        target.write(path.name, path.read_bytes())
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gather(mine: dict[str, str]) -> dict[str, str]:
    every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, mine)
    return {name: digest for files in every for name, digest in sorted(files.items())}


def _verify(source: Storage, path: Path, expected: str) -> None:
    place = f"{source.uri}/{path.name}"
    try:
        found = _sha256(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint file {place} can not be read: {error}") from error
    if found != expected:
        raise CheckpointError(
            f"checkpoint file {place} is corrupt: SHA-256 is {found}, {COMMIT} says {expected}. "
            f"Remove {source.uri} to go on from an older checkpoint."
        )


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; DCP wraps the errors of all ranks in one."""
    if isinstance(error, CheckpointException) and error.failures:
        _, (inner, _) = min(error.failures.items())
        return _reason(inner)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Unpickler(pickle.Unpickler):
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
        raise CheckpointError(f".metadata names {module}.{name}, which no checkpoint of ours holds")


def _memory_format(kind: object, name: str) -> Any:
    if kind is not _MEM_FORMAT_ENCODING:
        raise CheckpointError(
            f".metadata asks for {name} of {kind}, which no checkpoint of ours holds"
        )
    return _MEM_FORMAT_ENCODING[name]


class _Reader(FileSystemReader):
    """DCP's reader, with an index that can not run code and leads only to files with a hash."""

    def __init__(self, directory: Path, files: set[str]) -> None:
        super().__init__(directory)
        self._files = files

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = _Unpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{self.path}/.metadata is not the index of a checkpoint")
        for entry in (metadata.storage_data or {}).values():
            if entry.relative_path not in self._files:
                raise CheckpointError(
                    f".metadata names {entry.relative_path}, which {COMMIT} does not"
                )
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
