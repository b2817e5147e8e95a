"""From a run's newest good checkpoint to a folder in the Llama layout of Hugging Face, or in that of
LLaVA for a model that reads images.

Weights go from the checkpoint's files to safetensors in blocks of rows, converted and hashed on the way;
to object storage a file goes when it is whole. The folder is claimed by `export.json`, which decides
every byte of it, before anything else is there; `SHA256SUMS` is written last, and is the commit. So two
commands that write the same folder write the same, and one that was killed is done again by the same
command.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import processors
from torch import Tensor

from panthalassa.config_model import Model
from panthalassa.corpus.manifest import TOKENIZER
from panthalassa.corpus.pretrained_tokenizer import PretrainedTokenizer
from panthalassa.corpus.tokenizer import DELIMITERS, Tokenizer
from panthalassa.errors import CheckpointError, ConfigError
from panthalassa.exchange.card import Evaluation, card
from panthalassa.exchange.importing import kept_files
from panthalassa.exchange.llama_folder import CONFIG, SUMS
from panthalassa.exchange.tokenizer_source import IMPORTED, trained_tokenizer
from panthalassa.exchange.weights import Weights, as_bytes, newest_good
from panthalassa.model import safetensors
from panthalassa.model.hugging_face import (
    Delimiters,
    generation_config,
    tokenizer_config,
)
from panthalassa.model.llava import (
    PREPROCESSOR,
    PROCESSOR,
    constants,
    parameters,
    preprocessor_config,
    processor_config,
    to_config,
)
from panthalassa.model.safetensors import Entry
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import until
from panthalassa.train.checkpoint import Commit
from panthalassa.train.hashed_file import HashedFile
from panthalassa.train.staging import staged

CLAIM = "export.json"
GENERATION = "generation_config.json"
CARD = "README.md"
SHARD = 5 * 10**9
"""Bytes of a file of weights."""
FILES = 2
"""That are written at a time."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    uri: str
    checkpoint: str
    step: int
    files: int
    size: int
    """Bytes of weights."""
    seconds: float


def export(
    run: Storage,
    target: Storage,
    tell: Callable[[str], None],
    dtype: str | None = None,
    shard: int = SHARD,
    licence: str | None = None,
    staging: str | None = None,
    evaluations: Sequence[Evaluation] = (),
) -> Exported:
    """Write the newest good checkpoint of a run to a folder, which must hold nothing else.

    dtype: of DTYPES; else as the weights are stored. shard: bytes of a file, at most. staging: a local
    folder for files on their way from and to object storage. evaluations: of these
    weights, for the model card. Raises PanthalassaError.
    """
    began = time.perf_counter()
    _refuse_occupied(run, target)
    with _named(run, target), newest_good(run, staging, tell) as weights:
        model = weights.commit.shape
        contents = _contents(model, weights)
        entries = [
            Entry(p.theirs, DTYPES[dtype] if dtype else weights.dtype(p.ours), p.their_shape)
            for p in parameters(model)
        ]
        more = [Entry(c.name, entries[0].dtype, c.shape) for c in constants(model)]
        files = safetensors.divide([*entries, *more], shard)
        _refuse_others(evaluations, weights)
        small = dict(_small_files(run, weights, model, entries, files))
        small[CARD] = card(run, weights, model, entries, licence, evaluations).encode()
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in small.items()}
        claim = {
            "run": run.uri.rpartition("/")[2],
            "checkpoint": weights.name,
            "checkpoint_sha256": weights.commit.sha256,
            "weights": list(files),
            "files": sums,
        }
        claimed = (json.dumps(claim, indent=1) + "\n").encode()
        _claim(target, claimed)
        sums = {**sums, CLAIM: hashlib.sha256(claimed).hexdigest()}
        with ThreadPoolExecutor(FILES) as pool, ThreadPoolExecutor(1) as other:
            written = other.map(target.write, *zip(*small.items(), strict=True))
            write = partial(_write, target, staging, contents)
            sums |= zip(files, pool.map(write, files.items()), strict=True)
            list(written)
        listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        target.create(SUMS, listed.encode())
    return Exported(
        target.uri,
        weights.name,
        weights.commit.step,
        len(sums) + 1,
        sum(entry.size for entry in entries),
        time.perf_counter() - began,
    )


def _refuse_occupied(run: Storage, target: Storage) -> None:
    """Raises ConfigError unless the folder is empty, not there, or one that an export has begun."""
    with _named(run, target):
        names = [name for name, _ in target.files()] if target.exists("") else []
    if SUMS in names:
        raise ConfigError(f"{target.uri} holds an export already: choose another folder.")
    if names and CLAIM not in names:
        raise ConfigError(
            f"{target.uri} is not empty: there is {names[0]}. Choose another folder; an export never "
            "writes over what it did not write."
        )


def _refuse_others(evaluations: Sequence[Evaluation], weights: Weights) -> None:
    """Raises ConfigError for an evaluation of other weights."""
    for evaluation in evaluations:
        if evaluation.digest != weights.commit.sha256:
            raise ConfigError(
                f"{evaluation.uri} is an evaluation of other weights than those of {weights.name}: "
                f"its model's SHA-256 is {evaluation.digest}, that of the checkpoint's commit "
                f"{weights.commit.sha256}. Evaluate the run anew."
            )


def _claim(target: Storage, claim: bytes) -> None:
    try:
        target.create(CLAIM, claim)
    except FileExistsError:
        raise ConfigError(
            f"{target.uri} holds another export that did not end, or is under way: {CLAIM} says of "
            "what. Remove the folder if it is not needed, or choose another one."
        ) from None


@contextmanager
def _named(run: Storage, target: Storage) -> Iterator[None]:
    """Raises PanthalassaError for what the storage of one of them can not do."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"a file vanished during the export: {error}. A run that trains removes old checkpoints; "
            "the same command takes its newest one, into another folder."
        ) from error
    except FileExistsError as error:
        raise ConfigError(f"{target.uri}/{SUMS} is that of another export: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"{run.uri} can not be exported to {target.uri}: {error}. Make room or mend the storage; "
            "the same command then begins anew."
        ) from error


def _contents(model: Model, weights: Weights) -> dict[str, Callable[[], Iterator[Tensor]]]:
    """For each tensor of the files what gives its numbers, some rows after the other."""
    own: dict[str, Callable[[], Iterator[Tensor]]] = {
        p.theirs: partial(weights.blocks, p.ours, p.shape) for p in parameters(model)
    }
    other = {
        c.name: partial(iter, [torch.full(c.shape, c.value, dtype=torch.float32)])
        for c in constants(model)
    }
    return {**own, **other}


def _write(
    target: Storage,
    staging: str | None,
    contents: Mapping[str, Callable[[], Iterator[Tensor]]],
    share: tuple[str, list[Entry]],
) -> str:
    """Write a file of weights, whole or not at all; returns its SHA-256."""
    name, entries = share
    own = f".{name}.{secrets.token_hex(8)}"
    with ExitStack() as stack:
        path = Path(target.path(own))
        if not target.is_local:
            path = stack.enter_context(staged(staging, f"export{own}")) / name
        stack.callback(path.unlink, missing_ok=True)
        with HashedFile(path) as file:
            file.write(safetensors.header(entries))
            for entry in entries:
                for block in contents[entry.name]():
                    file.write(as_bytes(block.to(entry.dtype)))
        if target.is_local:
            path.replace(target.path(name))
        else:
            target.upload(name, path)
        return file.digest


def _small_files(
    run: Storage,
    weights: Weights,
    model: Model,
    entries: list[Entry],
    files: dict[str, list[Entry]],
) -> Iterator[tuple[str, bytes]]:
    """All but weights and card: of an imported model that was not trained here, what came with it."""
    phases = weights.commit.phases
    dtype = str(entries[0].dtype).removeprefix("torch.")
    imported = kept_files(run)
    if phases:
        tokenizer = trained_tokenizer(run, phases[-1].corpus)
        length = trained_length(weights.commit)
        delimiters = Delimiters(tokenizer.bos, tokenizer.eos, tokenizer.pad)
        yield CONFIG, _json(to_config(model, length, dtype, delimiters))
        if model.vision:
            yield PREPROCESSOR, _json(preprocessor_config(model.vision))
            yield PROCESSOR, _json(processor_config(model.vision))
        generation = generation_config(delimiters, tokenizer.ends)
        if isinstance(tokenizer, PretrainedTokenizer):
            kept = tokenizer.files()
            theirs = json.loads(kept.pop(GENERATION, b"{}"))
            generation |= {**theirs, "eos_token_id": list(tokenizer.ends)}
            yield from kept.items()
        elif isinstance(tokenizer, Tokenizer):
            yield TOKENIZER, beginning_with_bos(tokenizer)
            yield "tokenizer_config.json", _json(tokenizer_config(*DELIMITERS, length))
        yield GENERATION, _json(generation)
    elif CONFIG in imported:
        yield CONFIG, _json(_imported_config(imported[CONFIG], dtype))
        yield from ((name, data) for name, data in imported.items() if name != CONFIG)
    else:
        raise ConfigError(f"{run.uri} has neither been trained nor imported: {IMPORTED} is missing")
    if len(files) > 1:
        yield safetensors.INDEX, safetensors.index(files)


def _imported_config(content: bytes, dtype: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(content)
    return {**config, "dtype" if "dtype" in config else "torch_dtype": dtype}


def trained_length(commit: Commit) -> int:
    """Tokens of the longest texts that a run was trained on."""
    reached = until(commit.phases, commit.step) or commit.phases[:1]
    return max(phase.sequence_length for phase in reached)


def beginning_with_bos(tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json by which a text begins as documents do in training, without anyone asking."""
    core = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
    bos = DELIMITERS[0]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, tokenizer.bos)]
    )
    return core.to_str(pretty=True).encode()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def explain(found: Exported) -> Iterator[tuple[str, str]]:
    """A table for people: names and what stands beside them."""
    yield "exported", f"{found.uri}, from {found.checkpoint}"
    speed = found.size / found.seconds / 1e6
    yield "weights", f"{found.size / 1e6:,.1f} MB in {found.seconds:.1f} s ({speed:,.0f} MB/s)"
    yield "files", f"{found.files}, with their SHA-256 in {SUMS}"
