"""The model that a fine-tuning begins with: a checkpoint of weights alone, in the run's own folder.

So a run depends on nothing outside it once it has begun. A run that trains all weights reads it when it
has no checkpoint yet. One that trains adapters reads it at every start, and its own checkpoints hold
the adapters alone.
"""

from typing import Any

import torch

from panthalassa.config import Config
from panthalassa.errors import CheckpointError
from panthalassa.model.lora import is_adapter
from panthalassa.storage import Storage
from panthalassa.train.checkpoint import COMMIT, State, folder, read_commit
from panthalassa.train.restore import verify

BASE = "base"
NAME = folder(0)


def identity(config: Config, run: Storage) -> dict[str, Any]:
    """What the weights of a run depend on, by key. Raises CheckpointError when there is no base."""
    model = config.model.identity()
    if not (config.finetune and config.finetune.lora):
        return model
    lora = config.finetune.lora.model_dump(mode="json", exclude={"dropout"})
    if not has_base(run):
        raise CheckpointError(
            f"{run.uri} has checkpoints, but not the weights that adapters belong to, {BASE}/: it is "
            "another run, or that folder was lost. Choose another run.name, or restore the folder."
        )
    return {**model, "lora": lora, "base": read_commit(run.below(BASE), NAME).sha256}


def has_base(run: Storage) -> bool:
    """Whether the weights that it begins with are there: it needs nothing of their source then."""
    return run.exists(f"{BASE}/{NAME}/{COMMIT}")


def load_base(run: Storage, state: State, staging: str | None) -> None:
    """Fill all weights but those of adapters, with all ranks. Raises CheckpointError on every rank."""
    weights: dict[str, torch.Tensor] = {
        f"weight.{name}": parameter.detach()
        for name, parameter in state.weights.items()
        if not is_adapter(name)
    }
    verify(run.below(BASE), NAME, staging).load_tensors(weights)
