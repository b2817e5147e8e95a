"""LLaVA models of Hugging Face's transformers, small and random, and what they say of images."""

from pathlib import Path
from typing import Any

import asked
import numpy as np
import torch
from llama import transformers
from numpy.typing import NDArray
from PIL import Image

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.model.transformer import Transformer

SIZE, PATCH = 32, 8
TOKENS = (SIZE // PATCH) ** 2
SPAN = [Tokenizer.image_start, *[Tokenizer.image] * TOKENS, Tokenizer.image_end]


def save_llava(folder: Path, dtype: str = "float32", tied: bool = False, **fields: Any) -> Any:
    """A random model, in three files and more; its weights are so large that it has opinions."""
    library = transformers()
    torch.manual_seed(1)
    text = library.LlamaConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": tied,
            **fields,
        }
    )
    vision = library.SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = library.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=Tokenizer.image,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = library.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="100KB")
    return model.eval()


def load_llava(folder: Path) -> Any:
    """Raises AssertionError for tensors that are missing, too many, or of another shape."""
    found, told = transformers().LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(told.values()), told
    return found.eval()


def some_images(count: int) -> NDArray[np.uint8]:
    """Noise [count, SIZE, SIZE, 3]."""
    return np.random.default_rng(3).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    """What their model reads: [images, 3, SIZE, SIZE]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def differ_on_images(ours: Transformer, theirs: Any, count: int = 2) -> float:
    """The largest difference of any logit over a text with images."""
    text = torch.randint(40, 320, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    ids = torch.tensor([[Tokenizer.bos, *SPAN * count, *text]])
    images = some_images(count)
    here = ours(ids, torch.zeros_like(ids), images=torch.from_numpy(images))
    there = theirs(input_ids=ids, pixel_values=normalised(images) if count else None).logits
    assert there.std() > 0.01
    return float((here - there.float()).abs().max())


def save_seeing(folder: Path, length: int = 64) -> Path:
    """A folder as an export is, with its tokenizer, of a model that reads `length` tokens."""
    ours = asked.tokenizer()
    save_llava(
        folder,
        vocab_size=ours.vocabulary_size,
        max_position_embeddings=length,
        bos_token_id=ours.bos,
        eos_token_id=ours.eos,
        pad_token_id=ours.pad,
    )
    (folder / "tokenizer.json").write_bytes(ours.to_bytes())
    return folder


def save_images(folder: Path, count: int) -> list[str]:
    """Files of all kinds of shapes; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(4)
    names = []
    for number in range(count):
        height, width = draw.integers(20, 90, 2)
        colours = draw.integers(0, 256, (4, 3, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((int(width), int(height)), Image.Resampling.NEAREST)
        names.append(f"{number}.{('png', 'jpg', 'webp')[number % 3]}")
        image.save(folder / names[-1])
    return names
