"""The platform's speed against a bare PyTorch loop: the same model, batch and process layout.

`make bench`. For one process, and for two data-parallel ones: a whole run of the platform (Ray Train,
Ray Data, FSDP, tracking, display) and a loop of forward, backward and AdamW over a batch in memory
(DistributedDataParallel for two), in turn, so that a machine whose speed drifts treats both alike.
Prints tokens a second of each, and the median of the ratios. Steps of warming up do not count.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import distributed as dist
from torch import multiprocessing, nn

from panthalassa.cluster import connected
from panthalassa.config import Config
from panthalassa.config_file import load
from panthalassa.corpus.prepare import prepare
from panthalassa.model.transformer import Transformer, initial_weight
from panthalassa.train.display import Display
from panthalassa.train.run import pretrain

WARM_UP = 10
TARGET = 0.95
LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "laptop.yaml"


def platform_speed(config: Config, console: Console) -> float:
    """Tokens a second of a run of the platform, between the first and the last step that count."""
    with Display(config, console) as display:
        steps = pretrain(config, display.show).history.steps
    counted = steps[WARM_UP:]
    positions = config.train.global_batch * config.train.sequence_length * (len(counted) - 1)
    return positions / (counted[-1].at - counted[0].at)


def bare_speed(config: Config) -> float:
    """The same of the bare loop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = config.cluster.workers
    speeds = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(bare_loop, (config, port, speeds), nprocs=world)
    return speeds.get()


def bare_loop(rank: int, config: Config, port: int, speeds: multiprocessing.SimpleQueue) -> None:
    train, world = config.train, config.cluster.workers
    torch.set_num_threads(config.cluster.threads_per_worker)
    store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    model: nn.Module = Transformer(config.model)
    device = torch.device("cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config.model, 0, device))
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    share = train.global_batch // world
    tokens = torch.randint(config.model.vocabulary_size, (share, train.sequence_length))
    documents = (
        torch.arange(train.sequence_length).div(100, rounding_mode="floor").expand_as(tokens)
    )
    pieces = list(
        zip(tokens.split(train.micro_batch), documents.split(train.micro_batch), strict=True)
    )
    start = 0.0
    for step in range(train.steps):
        if step == WARM_UP + 1:
            start = time.perf_counter()
        for number, (piece, document) in enumerate(pieces):
            if world > 1:
                model.require_backward_grad_sync = number == len(pieces) - 1
            loss = model(piece, document, piece.roll(-1, 1), train.loss_chunk)
            (loss / tokens.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    positions = train.global_batch * train.sequence_length * (train.steps - WARM_UP - 1)
    if rank == 0:
        speeds.put(positions / (time.perf_counter() - start))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(LAPTOP.parents[2])
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        base = [
            f"run.directory={directory}/runs",
            f"corpus.directory={directory}/corpus",
            f"train.steps={arguments.steps}",
            "checkpoint.every=100000",
            "evaluation.every=100000",
            "evaluation.samples=1",
            "evaluation.prompts=[]",
        ]
        first = load(LAPTOP, base)
        with connected(first.cluster):
            prepare(first.corpus, console.print)
        for world in arguments.processes:
            ratios = []
            for number in range(arguments.rounds):
                name = f"run.name=bench-{world}-{number}"
                config = load(LAPTOP, [*base, f"cluster.workers={world}", name])
                ours, bare = platform_speed(config, console), bare_speed(config)
                ratios.append(ours / bare)
                console.print(
                    f"{world} processes: platform {ours:,.0f}, bare {bare:,.0f} tokens/s, "
                    f"ratio {ratios[-1]:.3f}"
                )
            console.print(
                f"{world} processes: median ratio {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}); target {TARGET}"
            )


if __name__ == "__main__":
    main()
