"""The tokenizer of a model: of a folder in the Llama layout or of a run, checked against the model."""

from collections.abc import Mapping
from typing import get_args

from panthalassa.config_model import Model
from panthalassa.corpus.manifest import TOKENIZER, TokenizerFile
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import open_tokenizer, read_tokenizer
from panthalassa.errors import ConfigError
from panthalassa.exchange.llama_folder import read_small, read_sums
from panthalassa.run_config import kept_tree
from panthalassa.storage import Storage, open_storage
from panthalassa.train.audit import kept_manifest
from panthalassa.train.checkpoint import Commit

IMPORTED = "imported"
"""The folder of a run for what came with its weights."""
SENTENCEPIECE = "tokenizer.model"


def trained_tokenizer(run: Storage, fingerprint: str) -> TextTokenizer:
    """Of the corpus that the run was trained on last."""
    place = str(kept_tree(run).get("corpus", {}).get("directory"))
    return read_tokenizer(open_storage(place), kept_manifest(run, fingerprint))


def tokenizer_of_folder(source: Storage, model: Model) -> TextTokenizer:
    """That of a folder. Raises ConfigError when there is none that fits."""
    return _fitting(source, model, read_sums(source))


def tokenizer_of_run(run: Storage, commit: Commit) -> TextTokenizer:
    """That of a run's newest corpus; of a run that has not been trained, what came with its weights.

    Raises ConfigError when there is none that fits, CorpusError when the corpus's is gone or corrupt.
    """
    if commit.phases:
        return trained_tokenizer(run, commit.phases[-1].corpus)
    place = run.below(IMPORTED)
    return _fitting(place, commit.shape, {})


def _fitting(place: Storage, model: Model, sums: Mapping[str, str]) -> TextTokenizer:
    """Raises ConfigError also for a tokenizer of more tokens than the model has."""
    tokenizer = open_tokenizer(_files(place, sums), place.uri)
    if tokenizer.vocabulary_size > model.vocabulary_size:
        raise ConfigError(
            f"{place.uri}/{TOKENIZER} has {tokenizer.vocabulary_size} tokens, and the model "
            f"{model.vocabulary_size}: it is that of another model. Copy the right one there."
        )
    return tokenizer


def _files(place: Storage, sums: Mapping[str, str]) -> Mapping[str, bytes]:
    """What is there of a tokenizer, by name."""
    if not place.exists(TOKENIZER):
        told = f"{place.uri}/{TOKENIZER} is missing"
        if place.exists(SENTENCEPIECE):
            raise ConfigError(
                f"{told}: {SENTENCEPIECE} alone can not be read. Write the other with transformers: "
                f"AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        raise ConfigError(f"{told}. Copy that of the model there.")
    names = [name for name in (TOKENIZER, *get_args(TokenizerFile)) if place.exists(name)]
    return {name: read_small(place, name, sums) for name in names}
