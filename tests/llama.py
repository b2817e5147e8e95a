"""Llama models of Hugging Face's transformers, small and random, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from panthalassa.exchange.weights import newest_good
from panthalassa.model.transformer import Transformer
from panthalassa.storage import open_storage
from panthalassa.train.checkpoint import Commit

SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "tied, grouped queries": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "untied, one key for all queries": {"num_key_value_heads": 1},
    "a key for each query, another head size": {"num_key_value_heads": 4, "head_dim": 24},
    "scaled": {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5e5, **SCALED}},
}


def transformers() -> Any:
    return pytest.importorskip("transformers")


def save_llama(folder: Path, dtype: str = "float32", **fields: Any) -> Any:
    """A random model, in three files and more; its weights are so large that it has opinions."""
    library = transformers()
    torch.manual_seed(1)
    shape = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "dtype": dtype,
    }
    model = library.LlamaForCausalLM(library.LlamaConfig(**shape | fields)).to(
        getattr(torch, dtype)
    )
    model.save_pretrained(folder, max_shard_size="100KB")
    return model.eval()


def load_llama(folder: Path, **fields: Any) -> Any:
    return transformers().LlamaForCausalLM.from_pretrained(folder, **fields).eval()


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each tensor of a folder's files, as their own library reads them."""
    safetensors = pytest.importorskip("safetensors.torch")
    found = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in safetensors.load_file(path).items():
            found[name] = str(tensor.dtype), tensor.view(torch.uint8).numpy().tobytes()
    return found


def load_ours(run: Path) -> tuple[Transformer, Commit]:
    """The model of the newest checkpoint."""
    with newest_good(open_storage(str(run)), None, print) as weights:
        model = Transformer(weights.commit.shape)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                blocks = list(weights.blocks(name, tuple(parameter.shape)))
                parameter.copy_(torch.cat(blocks).view_as(parameter))
        return model, weights.commit


def differ(ours: Transformer, theirs: Any, length: int = 100) -> float:
    """The largest difference of any logit, over a random text of `length` tokens."""
    size = ours.config.vocabulary_size
    ids = torch.randint(size, (1, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        here, there = ours(ids, torch.zeros_like(ids)), theirs(ids).logits
    assert there.std() > 0.01
    return float((here - there.float()).abs().max())
