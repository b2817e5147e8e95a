"""Which token follows, given the logits of all.

Logits come in, one id goes out: the most likely one, or one that is drawn. What is drawn depends on the
seed and the prompt alone, so that a prompt has the same continuation in whatever batch it is.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panthalassa.errors import ConfigError

COLDEST = 1e-5
"""Lower temperatures take the most likely token, as 0 does: quotients by them may overflow."""
PENALTIES = 0.01, 100.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ConfigError for what can not be."""

    temperature: float = 0.0
    """By which logits are divided; 0 takes the most likely token, whatever the rest says."""
    top_k: int = 0
    """Only so many of the most likely tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens with that probability together are (Holtzman et al. 2020)."""
    seed: int = 0
    repetition_penalty: float = 1.0
    """By which logits of tokens that stand in the text are divided when positive, and multiplied when
    negative (CTRL, Keskar et al. 2019, section 4.1, in the form that has one sign)."""

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more, and finite"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, and 1 at most"),
            (
                "repetition_penalty",
                PENALTIES[0] <= self.repetition_penalty <= PENALTIES[1],
                f"{PENALTIES[0]} to {PENALTIES[1]:g}",
            ),
        )
        for name, passed, expected in checks:
            if not passed:
                raise ConfigError(f"{name}={getattr(self, name)}: expected {expected}")


class Sampler:
    """Draws the tokens of one text, one after the other."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        text = f"{sampling.seed}/{','.join(map(str, prompt))}"
        digest = hashlib.sha256(text.encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)

    def choose(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """The next id (of no dimension), by the logits [vocabulary] of what follows the text `ids`."""
        setting = self.sampling
        if setting.repetition_penalty != 1:
            logits = _penalised(logits, ids, setting.repetition_penalty)
        if setting.temperature < COLDEST:
            return logits.argmax()
        count, candidates = min(setting.top_k or len(logits), len(logits)), None
        if count < len(logits) or setting.top_p < 1:
            logits, candidates = logits.topk(count)
        weights = torch.softmax(logits.double() / setting.temperature, dim=-1)
        sums = weights.cumsum(dim=-1)
        kept = sums - weights < setting.top_p
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64).to(sums.device)
        threshold = drawn * sums[kept.sum() - 1]
        place = torch.searchsorted(sums, threshold, right=True).clamp(max=count - 1)
        return place if candidates is None else candidates[place]


def _penalised(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    present = torch.tensor(sorted(set(ids)), device=logits.device)
    before = logits[present]
    after = torch.where(before > 0, before / penalty, before * penalty)
    return logits.scatter(0, present, after)
