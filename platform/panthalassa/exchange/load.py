"""A model that is ready to be asked, from a run or from a folder in the Llama layout of Hugging Face.

Of a run it is the newest good checkpoint. Weights are verified, and go block by block from the files
into the parameters: there is no second copy of the model in memory.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

from panthalassa.config_model import Model
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.errors import ConfigError
from panthalassa.exchange.base import is_folder
from panthalassa.exchange.export import trained_length
from panthalassa.exchange.fresh_checkpoint import Source
from panthalassa.exchange.importing import kept_files
from panthalassa.exchange.llama_folder import CONFIG, read_folder, read_shape, read_sums
from panthalassa.exchange.storage_errors import named
from panthalassa.exchange.tokenizer_source import tokenizer_of_folder, tokenizer_of_run
from panthalassa.exchange.weights import newest_good
from panthalassa.model.llava import text_config
from panthalassa.model.transformer import Transformer
from panthalassa.run_config import run_at
from panthalassa.storage import Storage
from panthalassa.train.audit import kept_manifest
from panthalassa.train.checkpoint import Commit


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode, without gradients, and what belongs to it."""

    model: Transformer
    tokenizer: TextTokenizer
    name: str
    """Such as /home/me/runs/laptop, step-00000200."""
    digest: str
    """The SHA-256 that identifies the weights: of a run that of its checkpoint's commit, of a folder
    that of the list of its files of weights."""
    length: int | None = None
    """Tokens of the longest text that it was trained on, where that is known."""
    chats: bool | None = None
    """Whether it was trained on chats last, where that is known."""

    def known_length(self) -> int:
        """`length`. Raises ConfigError where it is not known."""
        if self.length is None:
            raise ConfigError(
                f"{self.name} does not say how long its texts were: give the key length"
            )
        return self.length

    def notice(self, tokens: int) -> str | None:
        """What is to be told of texts of so many tokens, if anything is."""
        if self.length is None or tokens <= self.length:
            return None
        return (
            f"texts of up to {tokens:,} tokens are asked for; {self.name} was trained on texts of up to "
            f"{self.length:,}, and may lose the thread beyond that"
        )

    def notice_of_format(self, chat: bool) -> str | None:
        """What is to be told of prompts in the chat format, or not in it, if anything is."""
        if self.chats is None or self.chats == chat:
            return None
        if chat:
            return f"{self.name} was not trained on chats: it may not answer as an assistant does"
        return f"{self.name} was fine-tuned on chats: with --chat a prompt is what a user says"


def open_model(
    place: Storage,
    device: torch.device,
    dtype: torch.dtype | None = None,
    staging: str | None = None,
    tell: Callable[[str], None] = print,
) -> Opened:
    """The model of a run or a folder, on `device`, in `dtype`; else in that in which it is stored.

    staging: a local folder for files on their way from object storage. tell: is told of checkpoints that
    are passed over. Raises PanthalassaError.
    """
    with named(place):
        if is_folder(place):
            return _from_folder(place, device, dtype, staging)
        return _from_run(place, device, dtype, staging, tell)


def open_here(place: str, staging: str | None, tell: Callable[[str], None]) -> Opened:
    """The same on a GPU if there is one; else on the CPU in fp32, which is many times as fast there as
    halves are."""
    if torch.cuda.is_available():
        return open_model(run_at(place), torch.device("cuda"), None, staging, tell)
    return open_model(run_at(place), torch.device("cpu"), torch.float32, staging, tell)


def _from_folder(
    place: Storage, device: torch.device, dtype: torch.dtype | None, staging: str | None
) -> Opened:
    tokenizer = tokenizer_of_folder(place, read_shape(place, read_sums(place)))
    with read_folder(place, staging) as found:
        length = _longest_text(found.read(CONFIG))
        model = _filled(found.model, found, device, dtype)
        return Opened(model, tokenizer, place.uri, found.digest(), length)


def _from_run(
    run: Storage,
    device: torch.device,
    dtype: torch.dtype | None,
    staging: str | None,
    tell: Callable[[str], None],
) -> Opened:
    with newest_good(run, staging, tell) as weights:
        commit = weights.commit
        config = commit.shape
        tokenizer = tokenizer_of_run(run, commit)
        length = trained_length(commit) if commit.phases else _longest_text(kept_files(run)[CONFIG])
        chats = _on_chats(run, commit) if commit.phases else None
        model = _filled(config, weights, device, dtype)
        name = f"{run.uri}, {weights.name}"
        return Opened(model, tokenizer, name, commit.sha256, length, chats)


def _on_chats(run: Storage, commit: Commit) -> bool:
    return kept_manifest(run, commit.phases[-1].corpus).objective is not None


def _longest_text(config: bytes) -> int | None:
    """Tokens of the longest text that a model was trained on, where its `config.json` says so."""
    found = text_config(json.loads(config)).get("max_position_embeddings")
    return found if isinstance(found, int) else None


@torch.no_grad()
def _filled(
    config: Model, source: Source, device: torch.device, dtype: torch.dtype | None
) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    model.to(dtype or source.dtype("embedding.weight")).to_empty(device=device)
    model.tie()  # which moving has undone
    for name, parameter in model.named_parameters():
        rows = parameter.view(parameter.shape[0], -1)
        first = 0
        for block in source.blocks(name, tuple(parameter.shape)):
            rows[first : first + len(block)].copy_(block)
            first += len(block)
    return model.requires_grad_(False).eval()
