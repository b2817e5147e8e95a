"""Images on any mesh: the losses, gradients and weights of one process, also for ranks without any."""

from typing import Any

import pytest
import torch
from checkpoints import phases_of, save
from images import MixedRun, loss_of, mixed, seeing
from ranks import plain_curve, tiny, unsharded, whole

from panthalassa.config import Config
from panthalassa.model.lora import is_adapter
from panthalassa.model.transformer import parameters_by_name
from panthalassa.storage import open_storage
from panthalassa.train import checkpoint, restore
from panthalassa.train.checkpoint import State
from panthalassa.train.step import warm_up

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]

VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {
    "plain": ((), 20),
    "accumulated": (("train.micro_batch=1",), 4),
    "gathered": (("train.micro_batch=1", "parallel.keep_gathered=true"), 4),
    "replicas": (("parallel.replicas=2", "train.micro_batch=1"), 4),
    "tied": (("model.tied_embeddings=true", "train.loss_chunk=24"), 4),
    "selective": (("parallel.activation_checkpointing=selective",), 4),
    "full": (("parallel.activation_checkpointing=full", "train.micro_batch=1"), 4),
}
"""What a configuration changes, and how many steps are compared."""

WITHOUT_EFFECT = "k_proj.bias"
"""What all keys of a query have in common changes no attention: its gradient is rounding alone."""

Curve = list[tuple[float, float]]


def reference(config: Config, steps: int) -> Curve:
    model = unsharded(config)
    return plain_curve(model, lambda step: loss_of(model, mixed(step, config)), config, steps)


@pytest.fixture(scope="module")
def references() -> dict[str, Curve]:
    tied = reference(seeing("model.tied_embeddings=true"), 4)
    untied = reference(seeing(), 20)
    return {name: tied if name == "tied" else untied for name in VARIANTS}


def curves(cases: list[tuple[Config, int]]) -> list[Curve]:
    found = []
    for config, steps in cases:
        run = MixedRun(config)
        found.append([run.step(step) for step in range(steps)])
    return found


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_every_mesh_gives_the_curve_of_one_process(
    ranks: Any, references: dict[str, Curve], dp: int, tp: int
) -> None:
    cases = [
        (seeing(f"parallel.tp_size={tp}", *overrides), steps)
        for overrides, steps in VARIANTS.values()
    ]
    by_rank = ranks(dp * tp, curves, cases)
    assert all(rank == by_rank[0] for rank in by_rank), "the ranks disagree"
    for name, curve in zip(VARIANTS, by_rank[0], strict=True):
        for step, (found, expected) in enumerate(zip(curve, references[name], strict=False)):
            where = f"{name}, step {step}: loss and norm are {found}, in one process {expected}"
            assert found[0] == pytest.approx(expected[0], abs=2e-5), where
            assert found[1] == pytest.approx(expected[1], rel=1e-3), where


def test_the_reference_learns_and_looks(references: dict[str, Curve]) -> None:
    # Else equal curves would say little.
    assert references["plain"][16][0] < references["plain"][0][0] - 0.5
    model, samples = unsharded(seeing()), mixed(0, seeing())
    before = loss_of(model, samples)
    assert samples.images is not None
    samples.images[:] = samples.images[::-1]
    assert loss_of(model, samples) != before


def gradients(configs: list[Config]) -> list[dict[str, torch.Tensor]]:
    return [MixedRun(config).gradients(0) for config in configs]


def check_gradients(found: dict[str, torch.Tensor], config: Config) -> None:
    model = unsharded(config)
    loss_of(model, mixed(0, config)).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        wanted = expected[name]
        assert wanted is not None
        size = wanted.norm()
        if name.endswith(WITHOUT_EFFECT):
            assert max(size, gradient.norm()) < 1e-6, name
            continue
        assert size > 1e-6, name
        error = (gradient - wanted).norm() / size
        assert error < 1e-4, f"{name}: relative error {error:.1e}, norm {gradient.norm():.1e}"


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_parameter_has_its_gradient(ranks: Any, dp: int, tp: int) -> None:
    configs = [
        seeing(f"parallel.tp_size={tp}", "train.micro_batch=1", f"model.tied_embeddings={tied}")
        for tied in ("false", "true")
    ]
    for found in ranks(dp * tp, gradients, configs):
        for config, whole_gradients in zip(configs, found, strict=True):
            check_gradients(whole_gradients, config)


def compiled_gradients(configs: list[Config]) -> list[tuple[dict[str, torch.Tensor], list[int]]]:
    """Gradients, and the graphs compiled by then: after the warm-up, and after steps of any number of
    images."""
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    inductor.compile_threads = 1  # no pool of compilers for a few small graphs
    found = []
    for config in configs:
        run = MixedRun(config)
        warm_up(run.model, run.mesh, config.train, torch.device("cpu"))
        graphs = [counters["stats"]["unique_graphs"]]
        first = run.gradients(0)
        for step in (1, 2, 3):
            run.step(step)
        found.append((first, [*graphs, counters["stats"]["unique_graphs"]]))
    return found


@pytest.mark.parametrize("tp", [1, 2])
def test_every_parameter_has_its_gradient_when_blocks_are_compiled(ranks: Any, tp: int) -> None:
    configs = [seeing(f"parallel.tp_size={tp}", "parallel.compile=true")]
    for found in ranks(tp, compiled_gradients, configs, timeout=500):
        for config, (whole_gradients, (warm, after)) in zip(configs, found, strict=True):
            check_gradients(whole_gradients, config)
            assert after == warm, "nothing is left to compile for any number of images"


def of_text(config: Config) -> tuple[float, dict[str, torch.Tensor]]:
    run = MixedRun(config)
    run.text = True
    gradients = run.gradients(0)
    return run.step(0)[0], gradients


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_text_alone_is_to_the_bit_what_it_is_to_a_model_of_text(
    ranks: Any, dp: int, tp: int
) -> None:
    found, expected = (
        ranks(dp * tp, of_text, make(f"parallel.tp_size={tp}", "train.micro_batch=2"))[0]
        for make in (seeing, tiny)
    )
    assert found[0] == expected[0]
    for name, gradient in expected[1].items():
        assert torch.equal(found[1][name], gradient), name
    others = [found[1][name] for name in found[1].keys() - expected[1].keys()]
    assert others
    assert not any(gradient.any() for gradient in others)


def whole_weights(config: Config) -> dict[str, torch.Tensor]:
    run = MixedRun(config)
    return {name: whole(p.detach()).clone() for name, p in parameters_by_name(run.model)}


@pytest.mark.parametrize(("dp", "tp"), [(2, 1), (2, 2), (3, 1)])
def test_every_mesh_starts_from_the_same_bits(ranks: Any, dp: int, tp: int) -> None:
    config = seeing(f"parallel.tp_size={tp}", "parallel.activation_checkpointing=full")
    expected = dict(unsharded(config).named_parameters())
    for weights in ranks(dp * tp, whole_weights, config):
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name]), name


def bf16_curve(config: Config) -> tuple[Curve, set[torch.dtype], set[torch.dtype]]:
    run, seen = MixedRun(config), set()
    assert run.model.vision is not None
    run.model.vision.blocks[0].register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    curve = [run.step(step) for step in range(4)]
    return curve, seen, {parameter.dtype for parameter in run.model.parameters()}


@pytest.mark.parametrize(("dp", "tp"), [(2, 1), (1, 2)])
def test_bf16_stays_near_fp32(ranks: Any, references: dict[str, Curve], dp: int, tp: int) -> None:
    config = seeing(f"parallel.tp_size={tp}", "parallel.precision=bf16")
    for curve, computed_in, kept_in in ranks(dp * tp, bf16_curve, config):
        assert computed_in == {torch.bfloat16}
        assert kept_in == {torch.float32}
        for found, expected in zip(curve, references["plain"], strict=False):
            assert found[0] == pytest.approx(expected[0], abs=0.03)


def interrupted(config: Config, folder: str) -> list[float]:
    run = MixedRun(config)
    for step in range(3):
        run.step(step)
    save(run, open_storage(folder), 3)
    return [run.step(step)[0] for step in range(3, 6)]


def continued(config: Config, folder: str) -> list[float]:
    run, storage, name = MixedRun(config), open_storage(folder), "step-00000003"
    commit = checkpoint.read_commit(storage, name)
    checkpoint.phases_from(
        storage, commit, config.model.identity(), phases_of(config), may_change=False
    )
    restore.load(storage, name, State(run.model, run.optimizer))
    return [run.step(step)[0] for step in range(3, 6)]


def test_a_checkpoint_goes_on_at_other_meshes(ranks: Any, tmp_path: Any) -> None:
    losses = ranks(4, interrupted, seeing("parallel.tp_size=2"), str(tmp_path))[0]
    for dp, tp in ((3, 1), (1, 2)):
        # Other initial weights: whatever is not loaded shows.
        config = seeing(f"parallel.tp_size={tp}", "run.seed=99")
        for found in ranks(dp * tp, continued, config, str(tmp_path)):
            assert found == pytest.approx(losses, abs=2e-5)


def adapted_curve(config: Config) -> tuple[Curve, set[str]]:
    run = MixedRun(config)
    named = list(parameters_by_name(run.model))
    curve = [run.step(step) for step in range(4)]
    return curve, {name for name, parameter in named if parameter.requires_grad}


def test_adapters_learn_from_images_on_any_mesh_and_the_tower_stays(ranks: Any) -> None:
    lora = ("finetune.start=nowhere", "finetune.lora.rank=2", "train.micro_batch=2")
    found = []
    for dp, tp in ((1, 1), (2, 1), (2, 2)):
        config = seeing(f"parallel.tp_size={tp}", *lora)
        curve, trained = ranks(dp * tp, adapted_curve, config)[0]
        assert all(is_adapter(name) and name.startswith("blocks.") for name in trained)
        found.append(curve)
    for curve in found[1:]:
        for here, there in zip(curve, found[0], strict=True):
            assert here[0] == pytest.approx(there[0], abs=2e-5)
            assert here[1] == pytest.approx(there[1], rel=1e-3)
