"""How fast text is generated with a cache of keys and values, beside reading all of it for each token.

`make bench-generate`. The laptop model with random weights continues a prompt of one token up to 512
tokens; one thread. A ratio is that of one round, in which both take turns, so that a machine whose speed
drifts treats both alike. Both take the most likely token, and must take the same ones. Then a batch of
prompts, with the cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from panthalassa.config_file import load
from panthalassa.model.generate import generate, generate_batch
from panthalassa.model.transformer import Transformer

TARGET = 5.0
WARM_UP = 64
"""Tokens of the round that does not count."""
PROMPT = [0]
NEVER: tuple[int, ...] = ()
LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "laptop.yaml"


def opinionated() -> Transformer:
    """The laptop model, with weights so large that the most likely token is clear."""
    model = Transformer(load(LAPTOP).model).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=generator)
            else:
                parameter.fill_(1)
    return model


def timed(action: Callable[..., list], *arguments: Any) -> tuple[float, list]:
    start = time.perf_counter()
    found = action(*arguments)
    return time.perf_counter() - start, found


def measure(model: Transformer, length: int, batch: int) -> tuple[float, float, float]:
    """Tokens a second with a cache, without, and of a batch with one."""
    limit = length - len(PROMPT)
    cached, found = timed(generate_batch, model, [PROMPT], limit)
    recomputed, expected = timed(generate, model, PROMPT, limit, 0.0, 0, NEVER)
    assert found == [expected]
    prompts = [[*PROMPT, token] for token in range(batch)]
    many, _ = timed(generate_batch, model, prompts, limit - 1)
    return limit / cached, limit / recomputed, batch * (limit - 1) / many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, length = opinionated(), arguments.tokens
    measure(model, WARM_UP, arguments.batch)
    rounds = [measure(model, length, arguments.batch) for _ in range(arguments.rounds)]
    with_cache, without, batched = zip(*rounds, strict=True)
    ratios = [cached / recomputed for cached, recomputed, _ in rounds]
    print(
        f"up to {length} tokens: {statistics.median(with_cache):,.0f} tokens/s with a cache, "
        f"{statistics.median(without):,.1f} without; median ratio {statistics.median(ratios):.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f}); target at least {TARGET}\n"
        f"{arguments.batch} prompts at a time: {statistics.median(batched):,.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
