"""From a folder in the Llama layout of Hugging Face to a run that has not begun.

What comes out is the checkpoint of step 0 (`fresh_checkpoint`): `train` goes on from it, with any number
of ranks. All is verified before anything is written: hashes where there is a list, the architecture, and
that each tensor is there. `config.json` and the tokenizer's files are kept in `imported/`.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panthalassa.config import Model
from panthalassa.errors import ConfigError, CorruptError
from panthalassa.exchange.fresh_checkpoint import FreshCheckpoint
from panthalassa.lease import FOLDER as LEASE
from panthalassa.lease import Lease
from panthalassa.model import safetensors
from panthalassa.model.hugging_face import from_llama, may_be_left_out, parameters
from panthalassa.model.safetensors import Entry
from panthalassa.storage import Storage
from panthalassa.train.checkpoint import COMMIT, Commit, folder, remove
from panthalassa.train.restore import THREADS
from panthalassa.train.staging import staged

FOLDER = "imported"
"""Of a run: what came with its weights."""
SUMS = "SHA256SUMS"
CONFIG = "config.json"
KEPT = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that are kept beside CONFIG where they are there."""


@dataclass(frozen=True)
class Imported:
    """A run that has not begun."""

    uri: str
    model: Model
    parameters: int
    verified: bool
    """Whether all files were what a list of SHA-256 says."""


def import_model(
    source: Storage, run: Storage, tell: Callable[[str], None], staging: str | None = None
) -> Imported:
    """Make a run out of a folder. `staging`: a local folder for files on their way from and to object
    storage.

    Raises ConfigError for another architecture, tensors that do not fit it, or a run's folder that holds
    something already, CorruptError for a file that is not what SHA256SUMS says.
    """
    try:
        _refuse_occupied(run)  # before a lease is put there, and again with it
        sums = _sums(source)
        model = from_llama(_config(source, sums), f"{source.uri}/{CONFIG}")
        with ExitStack() as stack:
            directory = Path(source.root)
            names = _files(source, sums)
            if not source.is_local:
                directory = stack.enter_context(staged(staging, f"import-{secrets.token_hex(8)}"))
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda name: _fetch(source, name, directory, sums), names))
            tensors = _tensors(source, directory, names, model)
            stack.enter_context(Lease(run, tell))
            _refuse_occupied(run)
            for name in (CONFIG, *KEPT):
                if source.exists(name):
                    run.write(f"{FOLDER}/{name}", _read(source, name, sums))
            _write(run, directory, tensors, model, staging)
    except OSError as error:
        raise ConfigError(f"{source.uri} can not be imported into {run.uri}: {error}") from error
    count = sum(entry.size // entry.dtype.itemsize for _, entry in tensors.values())
    return Imported(run.uri, model, count, all(name in sums for name in (CONFIG, *names)))


def kept_files(run: Storage) -> dict[str, bytes]:
    """What came with the weights of a run that was imported; empty for any other."""
    place = run.below(FOLDER)
    return {name: place.read(name) for name in (CONFIG, *KEPT) if place.exists(name)}


def _sums(source: Storage) -> dict[str, str]:
    """SHA-256 by name, where there is a list."""
    if not source.exists(SUMS):
        return {}
    lines = source.read(SUMS).decode(errors="replace").splitlines()
    found = (re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines)
    return {match[2]: match[1] for match in found if match}


def _read(source: Storage, name: str, sums: Mapping[str, str]) -> bytes:
    try:
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


def _config(source: Storage, sums: Mapping[str, str]) -> dict[str, Any]:
    content = _object(_read(source, CONFIG, sums))
    if content is None:
        raise ConfigError(f"{source.uri}/{CONFIG} is no JSON of a model's configuration")
    return content


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
    content = _object(_read(source, safetensors.INDEX, sums)) or {}
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
        if entry.shape != parameter.shape:
            raise ConfigError(
                f"{source.uri}/{name}: {parameter.theirs} is {list(entry.shape)}, and {CONFIG} makes it "
                f"{list(parameter.shape)}"
            )
        ours[parameter.ours] = name, entry
    if others := [name for name in found if not may_be_left_out(name, model)]:
        raise ConfigError(
            f"{source.uri}: the tensor {others[0]} is none of a Llama model that {CONFIG} describes"
        )
    return ours


def _refuse_occupied(run: Storage) -> None:
    """Raises ConfigError when the folder holds more than what an import has left that did not end."""
    torn = f"{folder(0)}/"
    for name, _ in run.files() if run.exists("") else ():
        if name == torn + COMMIT or not name.startswith((torn, f"{FOLDER}/", f"{LEASE}/")):
            raise ConfigError(
                f"{run.uri} is not empty: there is {name}. Choose the folder of a run that does not "
                "exist yet."
            )


def _write(
    run: Storage,
    directory: Path,
    tensors: Mapping[str, tuple[str, Entry]],
    model: Model,
    staging: str | None,
) -> None:
    target = run.below(folder(0))
    with ExitStack() as stack:
        place = Path(target.root)
        remove(run, folder(0))
        if target.is_local:
            place.mkdir(parents=True)
        else:
            place = stack.enter_context(staged(staging, f"import-{secrets.token_hex(8)}"))
        checkpoint = FreshCheckpoint(place)
        for file in dict.fromkeys(name for name, _ in tensors.values()):
            checkpoint.copy(
                directory / file, {our: e for our, (name, e) in tensors.items() if name == file}
            )
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
    )
    target.create(COMMIT, (commit.sealed().model_dump_json(indent=1) + "\n").encode())


def explain(found: Imported) -> Iterator[tuple[str, str]]:
    """A table for people: names and what stands beside them."""
    yield "imported", f"{found.uri}, {found.parameters:,} parameters"
    yield (
        "hashes",
        f"as in {SUMS}" if found.verified else f"not all are in a {SUMS} beside the files",
    )
    yield "train", "with this run.name and run.directory, and the model"
    for key, value in found.model.identity().items():
        yield f"  {key}", str(value)
