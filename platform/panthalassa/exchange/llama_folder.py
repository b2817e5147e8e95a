"""A folder in the Llama or the LLaVA layout of Hugging Face, verified: its model, and where its weights
lie.

Files are hashed where there is a list of SHA-256 beside them. `config.json` must describe a model that
can be one of ours, and the files of safetensors must hold each tensor of it, and no other. From object
storage they are downloaded first.
"""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panthalassa.config_model import Model
from panthalassa.corpus.manifest import TOKENIZER
from panthalassa.errors import ConfigError, CorruptError
from panthalassa.exchange.weights import BLOCK, as_bytes, read_whole
from panthalassa.model import safetensors
from panthalassa.model.llava import from_config, may_be_left_out, parameters
from panthalassa.model.safetensors import Entry
from panthalassa.storage import Storage
from panthalassa.train.restore import THREADS
from panthalassa.train.staging import staged

SUMS = "SHA256SUMS"
CONFIG = "config.json"
LARGEST = 16 << 20
"""Bytes of a file beside the weights."""
LARGEST_TOKENIZER = 512 << 20


@dataclass(frozen=True)
class LlamaFolder:
    """Its files of weights are in `directory`, and are what `sums` says, SHA-256 by name."""

    source: Storage
    directory: Path
    model: Model
    sums: Mapping[str, str]
    files: tuple[str, ...]
    tensors: Mapping[str, tuple[str, Entry]]
    """The file and the place of each parameter, by our name."""

    @property
    def verified(self) -> bool:
        """Whether all files are in the list of SHA-256."""
        return all(name in self.sums for name in (CONFIG, *self.files))

    def digest(self) -> str:
        """Of all weights: the SHA-256 of the list of those of their files."""
        found = ((self.sums.get(name) or self.source.sha256(name), name) for name in self.files)
        listed = "".join(f"{digest}  {name}\n" for digest, name in found)
        return hashlib.sha256(listed.encode()).hexdigest()

    def read(self, name: str) -> bytes:
        """A small file, as `read_small` does."""
        return read_small(self.source, name, self.sums)

    def dtype(self, parameter: str) -> torch.dtype:
        """In which a parameter is stored."""
        return self.tensors[parameter][1].dtype

    def blocks(self, parameter: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """The parameter [shape], some rows after the other."""
        name, entry = self.tensors[parameter]
        width = math.prod(shape[1:])
        rows = max(1, BLOCK // (width * entry.dtype.itemsize))
        with (self.directory / name).open("rb", buffering=0) as file:
            file.seek(entry.start)
            for first in range(0, shape[0], rows):
                block = torch.empty(min(rows, shape[0] - first), width, dtype=entry.dtype)
                read_whole(file, as_bytes(block))
                yield block


@contextmanager
def read_folder(source: Storage, staging: str | None) -> Iterator[LlamaFolder]:
    """The folder, for the block. `staging`: a local folder for files on their way from object storage.

    Raises ConfigError for another architecture, tensors that do not fit it or a file that is missing,
    CorruptError for one that is not what SHA256SUMS says.
    """
    sums = read_sums(source)
    model = read_shape(source, sums)
    with ExitStack() as stack:
        directory = Path(source.root)
        names = _files(source, sums)
        if not source.is_local:
            directory = stack.enter_context(staged(staging, f"import-{secrets.token_hex(8)}"))
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: _fetch(source, name, directory, sums), names))
        tensors = _tensors(source, directory, names, model)
        yield LlamaFolder(source, directory, model, sums, tuple(names), tensors)


def read_sums(source: Storage) -> dict[str, str]:
    """SHA-256 by name, where there is a list."""
    if not source.exists(SUMS):
        return {}
    lines = source.read(SUMS).decode(errors="replace").splitlines()
    found = (re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines)
    return {match[2]: match[1] for match in found if match}


def read_shape(source: Storage, sums: Mapping[str, str]) -> Model:
    """The model that its config.json describes. Raises ConfigError for another architecture."""
    content = _object(read_small(source, CONFIG, sums))
    if content is None:
        raise ConfigError(f"{source.uri}/{CONFIG} is no JSON of a model's configuration")
    return from_config(content, f"{source.uri}/{CONFIG}")


def read_small(source: Storage, name: str, sums: Mapping[str, str]) -> bytes:
    """A small file. Raises ConfigError when it is missing or too large, CorruptError when it is
    corrupt."""
    most = LARGEST_TOKENIZER if name == TOKENIZER else LARGEST
    try:
        if (size := source.size(name)) > most:
            raise ConfigError(f"{source.uri}/{name} has {size:,} bytes, and may have {most:,}")
        data = source.read(name, sums.get(name))
    except FileNotFoundError:
        raise ConfigError(
            f"{source.uri}/{name} is missing: expected a folder with {CONFIG} and safetensors."
        ) from None
    _compare(source, name, hashlib.sha256(data).hexdigest(), sums)
    return data


def _compare(source: Storage, name: str, found: str, sums: Mapping[str, str]) -> None:
    if found != sums.get(name, found):
        raise CorruptError(
            f"{source.uri}/{name} is corrupt: its SHA-256 is {found}, {SUMS} says {sums[name]}. Copy "
            "the file again."
        )


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _files(source: Storage, sums: Mapping[str, str]) -> list[str]:
    """The names of the files of weights."""
    if not source.exists(safetensors.INDEX):
        if not source.exists(safetensors.WHOLE):
            raise ConfigError(
                f"{source.uri} holds neither {safetensors.WHOLE} nor {safetensors.INDEX}: weights are "
                "read from safetensors alone."
            )
        return [safetensors.WHOLE]
    content = _object(read_small(source, safetensors.INDEX, sums)) or {}
    where = content.get("weight_map")
    names = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
    if not names or not all(re.fullmatch(r"\w[\w.-]*\.safetensors", name) for name in names):
        raise ConfigError(f"{source.uri}/{safetensors.INDEX} does not name files of this folder")
    return names


def _fetch(source: Storage, name: str, directory: Path, sums: Mapping[str, str]) -> None:
    """Verify a file where a hash is known; from object storage, write it to `directory`."""
    if not source.exists(name):
        raise ConfigError(f"{source.uri}/{name} is missing. Copy it there.")
    if not source.is_local:
        _compare(source, name, source.download(name, directory / name, sums.get(name, "")), sums)
    elif name in sums:
        _compare(source, name, source.sha256(name), sums)


def _tensors(
    source: Storage, directory: Path, names: list[str], model: Model
) -> dict[str, tuple[str, Entry]]:
    """The file and the place of each of our parameters. Raises ConfigError when they do not fit."""
    found: dict[str, tuple[str, Entry]] = {}
    for name in names:
        with (directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for entry in safetensors.read_header(file, size, f"{source.uri}/{name}"):
                found[entry.name] = name, entry
    ours = {}
    for parameter in parameters(model):
        if parameter.theirs not in found:
            raise ConfigError(f"{source.uri}: the tensor {parameter.theirs} is missing")
        name, entry = found.pop(parameter.theirs)
        if entry.shape != parameter.their_shape:
            raise ConfigError(
                f"{source.uri}/{name}: {parameter.theirs} is {list(entry.shape)}, and {CONFIG} makes it "
                f"{list(parameter.their_shape)}"
            )
        ours[parameter.ours] = name, entry
    if others := [name for name in found if not may_be_left_out(name, model)]:
        raise ConfigError(
            f"{source.uri}: the tensor {others[0]} is none of the model that {CONFIG} describes"
        )
    return ours
