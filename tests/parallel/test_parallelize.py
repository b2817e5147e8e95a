"""Training on any mesh is training on one rank: the same losses, gradients and weights."""

from collections import Counter
from typing import Any

import pytest
import torch
from ranks import (
    TinyRun,
    mean_loss,
    packed,
    plain_curve,
    tiny,
    unsharded,
    unsharded_gradients,
    whole,
)
from torch.utils._python_dispatch import TorchDispatchMode

from panthalassa.config import Config
from panthalassa.model.generate import generate
from panthalassa.model.transformer import parameters_by_name
from panthalassa.train.step import warm_up

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]

VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {
    "plain": ((), 20),
    "accumulated": (("train.micro_batch=1",), 6),
    "gathered": (("train.micro_batch=1", "parallel.keep_gathered=true"), 6),
    "replicas": (("parallel.replicas=2", "train.micro_batch=1"), 20),
    "tied": (("model.tied_embeddings=true", "train.loss_chunk=24"), 6),
    "tied-gathered": (
        ("model.tied_embeddings=true", "train.micro_batch=1", "parallel.keep_gathered=true"),
        6,
    ),
    "selective": (("parallel.activation_checkpointing=selective",), 6),
    "full": (("parallel.activation_checkpointing=full", "train.loss_chunk=24"), 6),
    "three-samples": (("train.global_batch=3", "train.micro_batch=1"), 6),
}
"""What a configuration changes, and how many steps are compared."""

Curve = list[tuple[float, float]]


def reference(config: Config, steps: int) -> Curve:
    """Loss and gradient norm of each step, by plain torch in one process."""
    model = unsharded(config)
    return plain_curve(model, lambda step: mean_loss(model, packed(step, config)), config, steps)


@pytest.fixture(scope="module")
def references() -> dict[str, Curve]:
    by_mathematics: dict[tuple[bool, int], Curve] = {}
    found = {}
    for name, (overrides, _) in VARIANTS.items():
        config = tiny(*overrides)
        key = (config.model.tied_embeddings, config.train.global_batch)
        if key not in by_mathematics:
            by_mathematics[key] = reference(config, 20)
        found[name] = by_mathematics[key]
    return found


def curves(cases: list[tuple[Config, int]]) -> list[Curve]:
    found = []
    for config, steps in cases:
        run = TinyRun(config)
        found.append([run.step(step) for step in range(steps)])
    return found


def gradients(configs: list[Config]) -> list[dict[str, torch.Tensor]]:
    return [TinyRun(config).gradients(0) for config in configs]


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_every_mesh_gives_the_curve_of_one_process(
    ranks: Any, references: dict[str, Curve], dp: int, tp: int
) -> None:
    cases = [
        (tiny(f"parallel.tp_size={tp}", *overrides), steps)
        for overrides, steps in VARIANTS.values()
    ]
    by_rank = ranks(dp * tp, curves, cases)
    assert all(rank == by_rank[0] for rank in by_rank), "the ranks disagree"
    for name, curve in zip(VARIANTS, by_rank[0], strict=True):
        for step, (found, expected) in enumerate(zip(curve, references[name], strict=False)):
            where = f"{name}, step {step}: loss and norm are {found}, in one process {expected}"
            assert found[0] == pytest.approx(expected[0], abs=1e-4), where
            assert found[1] == pytest.approx(expected[1], rel=1e-3), where


def test_the_reference_learns(references: dict[str, Curve]) -> None:
    # Else equal curves would say little.
    assert references["plain"][19][0] < references["plain"][0][0] - 0.5
    assert references["tied"][5] != references["plain"][5]
    assert references["three-samples"][5] != references["plain"][5]


def assert_same_gradients(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        size = expected[name].norm()
        assert size > 0, name
        error = (gradient - expected[name]).norm() / size
        assert error < 1e-5, f"{name}: relative error {error:.1e}, norm {gradient.norm():.1e}"


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (2, 2)])
def test_every_parameter_has_its_gradient(ranks: Any, dp: int, tp: int) -> None:
    configs = [
        tiny(f"parallel.tp_size={tp}", "train.micro_batch=1", f"model.tied_embeddings={tied}")
        for tied in ("false", "true")
    ]
    for found in ranks(dp * tp, gradients, configs):
        for config, whole_gradients in zip(configs, found, strict=True):
            assert_same_gradients(whole_gradients, unsharded_gradients(config, 0))


def compiled_gradients(configs: list[Config]) -> list[tuple[dict[str, torch.Tensor], list[int]]]:
    """Gradients, and the graphs compiled by then: before, after the warm-up, and after the step."""
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    inductor.compile_threads = 1  # no pool of compilers for a few small graphs
    found = []
    for config in configs:
        run, graphs = TinyRun(config), [counters["stats"]["unique_graphs"]]
        warm_up(run.model, run.mesh, config.train, torch.device("cpu"))
        graphs.append(counters["stats"]["unique_graphs"])
        found.append((run.gradients(0), [*graphs, counters["stats"]["unique_graphs"]]))
    return found


def test_every_parameter_has_its_gradient_when_blocks_are_compiled(ranks: Any) -> None:
    """Compiled blocks under tensor parallelism once gave the embedding a gradient of zero."""
    configs = [
        tiny("parallel.tp_size=2", "parallel.compile=true", *more)
        for more in ((), ("parallel.activation_checkpointing=selective",))
    ]
    for found in ranks(2, compiled_gradients, configs, timeout=400):
        for config, (whole_gradients, graphs) in zip(configs, found, strict=True):
            before, warm, after = graphs
            assert warm - before == 2, "equal blocks share one graph for evaluation, one for steps"
            assert after == warm, "nothing is left to compile for the first step"
            assert_same_gradients(whole_gradients, unsharded_gradients(config, 0))


def whole_weights(configs: list[Config]) -> list[dict[str, torch.Tensor]]:
    return [
        {name: whole(p.detach()).clone() for name, p in parameters_by_name(TinyRun(config).model)}
        for config in configs
    ]


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_every_mesh_starts_from_the_same_bits(ranks: Any, dp: int, tp: int) -> None:
    configs = [
        tiny(f"parallel.tp_size={tp}", *more)
        for more in (
            (),
            ("model.tied_embeddings=true",),
            ("parallel.activation_checkpointing=full",),
        )
    ]
    for found in ranks(dp * tp, whole_weights, configs):
        for config, weights in zip(configs, found, strict=True):
            expected = dict(unsharded(config).named_parameters())
            assert weights.keys() == expected.keys()
            for name, weight in weights.items():
                assert torch.equal(weight, expected[name]), name


def bf16_curve(config: Config) -> tuple[Curve, set[torch.dtype], set[torch.dtype]]:
    run, seen = TinyRun(config), set()
    run.model.blocks[0].ffn.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    curve = [run.step(step) for step in range(4)]
    moments = [m["exp_avg"] for m in run.optimizer.state.values()]
    return curve, seen, {t.dtype for t in [*run.model.parameters(), *moments]}


@pytest.mark.parametrize(("dp", "tp"), [(2, 1), (1, 2)])
def test_bf16_stays_near_fp32_and_keeps_its_state_in_fp32(
    ranks: Any, references: dict[str, Curve], dp: int, tp: int
) -> None:
    config = tiny(f"parallel.tp_size={tp}", "parallel.precision=bf16")
    for curve, computed_in, kept_in in ranks(dp * tp, bf16_curve, config):
        assert computed_in == {torch.bfloat16}
        assert kept_in == {torch.float32}
        assert curve != references["plain"][:4]
        for found, expected in zip(curve, references["plain"], strict=False):
            assert found[0] == pytest.approx(expected[0], abs=0.03)
            assert found[1] == pytest.approx(expected[1], rel=0.1)


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(configs: list[Config]) -> list[Counter[str]]:
    found = []
    for config in configs:
        run = TinyRun(config)
        with Operations() as seen:
            run.step(0)
        found.append(seen.counts)
    return found


def test_activation_checkpointing_computes_again_what_it_says(ranks: Any) -> None:
    modes = ("none", "selective", "full")
    configs = [tiny(f"parallel.activation_checkpointing={mode}") for mode in modes]
    (found,) = ranks(1, operations, configs)
    none, selective, full = found
    layers = configs[0].model.layers
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert [c["silu"] for c in found] == [layers, 2 * layers, 2 * layers]
    assert selective["mm"] == none["mm"]
    assert full["mm"] > none["mm"]
    assert [c[attention] for c in found] == [layers, layers, 2 * layers]


def test_kept_weights_are_gathered_and_reduced_once_a_step(ranks: Any) -> None:
    configs = [
        tiny("train.micro_batch=1", f"parallel.keep_gathered={keep}") for keep in ("false", "true")
    ]
    for each, once in ranks(2, operations, configs):
        groups = configs[0].model.layers + 2  # the blocks, the head, and what is left
        assert each["_reduce_scatter_base_"] == 2 * groups
        assert once["_reduce_scatter_base_"] == 1
        assert once["_allgather_base_"] < each["_allgather_base_"]


def continuations(config: Config) -> list[int]:
    run = TinyRun(config)
    return generate(run.model, [3, 1, 4, 1, 5], 8, 0.0, 0, stop_ids=())


def test_a_sharded_model_continues_a_prompt_as_a_whole_one_does(ranks: Any) -> None:
    expected = generate(unsharded(tiny()), [3, 1, 4, 1, 5], 8, 0.0, 0, stop_ids=())
    for found in ranks(4, continuations, tiny("parallel.tp_size=2")):
        assert found == expected
