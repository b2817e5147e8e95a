"""What reads images: a vision transformer in the shape of SigLIP, and the projector of LLaVA.

Images [images, size, size, 3] (uint8) go in; out come features, `tokens` for each image from left to
right and from top to bottom, which stand in the decoder where its tokens are `IMAGE`. Layers, and the
order of the pixels inside a patch, are those of Hugging Face's `SiglipVisionModel` and
`LlavaForConditionalGeneration` with the features of the last block as they are: the norm behind it
belongs to a pooling that is not used here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panthalassa.config_model import Model, Vision
from panthalassa.corpus.tokenizer import Tokenizer

IMAGE = Tokenizer.image
"""The token at the positions of an image."""
CHANNELS = 3


class VisionAttention(nn.Module):
    """Attention between all patches of an image."""

    def __init__(self, config: Vision) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = size // config.heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.o_proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class VisionFeedForward(nn.Module):
    """Two layers and GELU in its approximation by tanh (Hendrycks & Gimpel 2016)."""

    def __init__(self, config: Vision) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and beside a residual path."""

    def __init__(self, config: Vision) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.attention = VisionAttention(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.ffn = VisionFeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class VisionTower(nn.Module):
    """Patches, their learned positions, and blocks (Dosovitskiy et al. 2021; Zhai et al. 2023)."""

    def __init__(self, config: Vision) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Linear(CHANNELS * config.patch_size**2, config.hidden_size)
        self.positions = nn.Embedding(config.tokens, config.hidden_size)
        self.split = nn.Identity()  # where sequence parallelism splits an image
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))

    def forward(self, images: Tensor) -> Tensor:
        """Features [images, tokens, hidden] of images [images, size, size, 3] (uint8)."""
        pixels = self._pixels(images).to(self.patches.weight.dtype)
        place = torch.arange(self.config.tokens, device=images.device)
        x = self.split(self.patches(pixels) + self.positions(place))
        for block in self.blocks:
            x = block(x)
        return x  # type: ignore[no-any-return]

    def _pixels(self, images: Tensor) -> Tensor:
        """Those of each patch, from -1 to 1: [images, tokens, channel · row · column] in fp32."""
        size, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        squares = images.reshape(-1, side, size, side, size, CHANNELS).permute(0, 1, 3, 5, 2, 4)
        return squares.reshape(len(images), side * side, -1) / 127.5 - 1

    def black(self, device: torch.device) -> Tensor:
        """An image that shows nothing: [1, size, size, 3]."""
        size = self.config.image_size
        return torch.zeros(1, size, size, CHANNELS, dtype=torch.uint8, device=device)


class Projector(nn.Module):
    """From the tower's width to the decoder's (Liu et al. 2023)."""

    def __init__(self, config: Model, vision: Vision) -> None:
        super().__init__()
        self.in_proj = nn.Linear(vision.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.gelu(self.in_proj(x)))  # type: ignore[no-any-return]


def put_in(x: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
    """x [batch, sequence, hidden] with features [images, tokens, hidden] in their order where `tokens`
    [batch, sequence] are IMAGE. There are as many as such positions: no device is asked for that."""
    here = tokens == IMAGE
    order = (here.flatten().cumsum(0) - 1).clamp(min=0).view_as(tokens)
    return torch.where(here[..., None], F.embedding(order, features.flatten(0, 1)), x)
