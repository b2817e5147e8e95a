"""From a folder in the Llama layout of Hugging Face to a run that has not begun.

What comes out is the checkpoint of step 0 (`fresh_checkpoint`): `train` goes on from it, with any number
of ranks. All is verified before anything is written: hashes where there is a list, the architecture, and
that each tensor is there. `config.json` and the tokenizer's files are kept in `imported/`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from panthalassa.config_model import Model
from panthalassa.corpus.manifest import TOKENIZER, TokenizerFile
from panthalassa.errors import ConfigError
from panthalassa.exchange.fresh_checkpoint import write_checkpoint
from panthalassa.exchange.llama_folder import CONFIG, SUMS, read_folder
from panthalassa.exchange.tokenizer_source import IMPORTED, tokenizer_of_folder
from panthalassa.lease import FOLDER as LEASE
from panthalassa.lease import Lease
from panthalassa.model.llava import PREPROCESSOR, PROCESSOR
from panthalassa.storage import Storage
from panthalassa.train.checkpoint import COMMIT, folder

KEPT = (TOKENIZER, "tokenizer.model", *get_args(TokenizerFile), PREPROCESSOR, PROCESSOR)
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

    Raises ConfigError for another architecture, tensors or a tokenizer that do not fit it, or a run's
    folder that holds something already, CorruptError for a file that is not what SHA256SUMS says.
    """
    try:
        _refuse_occupied(run)  # before a lease is put there, and again with it
        with read_folder(source, staging) as found:
            kept = {n: found.read(n) for n in (CONFIG, *KEPT) if source.exists(n)}
            if TOKENIZER in kept:
                tokenizer_of_folder(source, found.model)
            with Lease(run, tell):
                _refuse_occupied(run)
                for name, data in kept.items():
                    run.write(f"{IMPORTED}/{name}", data)
                write_checkpoint(run, found.model, found, staging, optimizer=True)
    except OSError as error:
        raise ConfigError(f"{source.uri} can not be imported into {run.uri}: {error}") from error
    count = sum(entry.size // entry.dtype.itemsize for _, entry in found.tensors.values())
    return Imported(run.uri, found.model, count, found.verified)


def kept_files(run: Storage) -> dict[str, bytes]:
    """What came with the weights of a run that was imported; empty for any other."""
    place = run.below(IMPORTED)
    return {name: place.read(name) for name in (CONFIG, *KEPT) if place.exists(name)}


def _refuse_occupied(run: Storage) -> None:
    """Raises ConfigError when the folder holds more than what an import has left that did not end."""
    torn = f"{folder(0)}/"
    for name, _ in run.files() if run.exists("") else ():
        if name == torn + COMMIT or not name.startswith((torn, f"{IMPORTED}/", f"{LEASE}/")):
            raise ConfigError(
                f"{run.uri} is not empty: there is {name}. Choose the folder of a run that does not "
                "exist yet."
            )


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
