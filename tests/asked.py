"""A small random model that can be asked: a folder as an export is, with its tokenizer."""

import json
from pathlib import Path

import tokenizers
from llama import save_llama
from tokenizers import processors

from panthalassa.corpus.tokenizer import DELIMITERS, Tokenizer
from panthalassa.model.hugging_face import Delimiters, generation_config, tokenizer_config

LENGTH = 64
TEXTS = (
    "the cat sat on the mat. ",
    "Ein Hund läuft weg! ",
    "two words, and 3 numbers\n",
    "海は広い ",
)


def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 340)


def save_model(folder: Path, length: int = LENGTH, **shape: int) -> Path:
    """The model reads `length` tokens; its weights are so large that it has opinions."""
    ours = tokenizer()
    delimiters = Delimiters(ours.bos, ours.eos, ours.pad)
    save_llama(
        folder,
        vocab_size=ours.vocabulary_size,
        max_position_embeddings=length,
        bos_token_id=ours.bos,
        eos_token_id=ours.eos,
        pad_token_id=ours.pad,
        **{"num_key_value_heads": 2, **shape},
    )
    core = tokenizers.Tokenizer.from_str(ours.to_bytes().decode())
    core.post_processor = processors.TemplateProcessing(
        single=f"{DELIMITERS[0]} $A", special_tokens=[(DELIMITERS[0], ours.bos)]
    )
    (folder / "tokenizer.json").write_text(core.to_str())
    settings = {
        "tokenizer_config.json": tokenizer_config(*DELIMITERS, length),
        "generation_config.json": generation_config(delimiters, ours.ends),
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    return folder
