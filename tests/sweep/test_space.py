"""What can be searched, and what is refused before anything runs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.config_file import load as load_run
from panthalassa.errors import ConfigError
from panthalassa.sweep.config import Range
from panthalassa.sweep.space import Plan, load

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "jobs" / "configs").glob("s[cw]*-*.yaml"))  # scaling-, sweep-
LAPTOP = ROOT / "jobs" / "configs" / "sweep-laptop.yaml"
RATE = "train.optimizer.learning_rate"
PBT = ("sweep.search=pbt", "sweep.asha=false", "sweep.within=", "checkpoint.every=10")


def swept(*overrides: str) -> Plan:
    return load(LAPTOP, list(overrides))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        swept(*overrides)
    return str(refusal.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_shipped_sweep_can_be_run(path: Path) -> None:
    assert load(path, []).count > 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep.space={train.optimizer.learning_rat: [1]}"], f"did you mean {RATE}?"),
        (
            ["sweep.space={train.steps: [many]}"],
            "train.steps='many': Input should be a valid integer",
        ),
        (["sweep.space={train.steps: {low: 100.0, high: 200.0}}"], "a fractional part"),
        (
            ["sweep.space={train.steps: {low: 0, high: 1}}"],
            "train.steps=0: Input should be greater",
        ),
        (["sweep.space={model.heads: [4, 3]}"], "heads=3 is not a multiple of kv_heads=2"),
        (["sweep.space={run.name: [a, b]}"], "run.name: the sweep sets it for each trial"),
        (["sweep.space={run: [{name: a}]}"], "run.name: the sweep sets it for each trial"),
        (["sweep.space={cluster: [{address: auto}]}"], "cluster.address: the sweep sets it"),
        (["sweep.space={train.steps.most: [1]}"], "steps holds a value, not further keys"),
        (["sweep.space={'': [1]}"], "expected key=value"),
        (["sweep.space={train.steps: [2024-01-01]}"], "train.steps='2024-01-01': Input should be"),
        (
            ["sweep.space={model.layers: [2], model: [{preset: laptop}]}"],
            "space has model and model.layers below it",
        ),
        (["sweep.space={tracking.parent: [a]}"], "tracking.parent: the sweep sets it"),
        (["sweep.space={train.steps: []}"], "train.steps: give at least one value"),
        (
            ["sweep.space={train.steps: {low: 9, high: 5}}"],
            "sweep.space.train.steps: low=9 is not below high=5",
        ),
        (
            [f"sweep.space.{RATE}={{low: few, high: 1}}"],
            f"sweep.space.{RATE}.low='few': Input should be a valid",
        ),
        ([f"sweep.space.{RATE}={{lo: 1, high: 2}}"], f"sweep.space.{RATE}.low: missing"),
        (
            [f"sweep.space.{RATE}={{low: 0, high: .inf}}"],
            f"sweep.space.{RATE}.high=inf: Input should be a finite number",
        ),
        (["sweep.space={train.steps: {low: 0, high: 5, log: true}}"], "low=0 has no logarithm"),
        (["sweep.space={}"], "sweep.space={}"),
        (["sweep.objective=accuracy"], "'loss', 'tokens_per_second' or 'j_per_token'"),
        (["sweep.objective=[loss, loss]", "sweep.asha=false"], "names one twice"),
        (["sweep.objective=[loss, j_per_token]"], "rank trials by one objective"),
        (["sweep.objective=tokens_per_second"], "within belongs to objective=loss"),
        (["sweep.search=annealing"], "'random', 'grid', 'tpe' or 'pbt'"),
        (
            ["sweep.search=grid", "sweep.trials="],
            f"{RATE}, train.optimizer.weight_decay is a range",
        ),
        (["sweep.search=grid"], "leave trials out"),
        (["sweep.trials="], "search=random needs trials"),
        (["sweep.search=pbt"], "set asha=false"),
        ([*PBT, "sweep.trials=1"], "two trials or more"),
        ([*PBT, "checkpoint.every=45"], "checkpoint.every=45: search=pbt branches off from"),
        ([*PBT, "checkpoint.every="], "checkpoint.every=None: search=pbt branches off from"),
        ([*PBT, "sweep.within=0.01"], "a branch of search=pbt has only a part of its own"),
        (
            [*PBT, "sweep.space={train.global_batch: [8, 16]}"],
            "train.global_batch: search=pbt changes runs under way, and so only train.optimizer.*",
        ),
        (["evaluation.every=90"], "evaluation.every=90 shows nothing before the end"),
        (["sweep.trails=9"], "did you mean sweep.trials?"),
        (
            ["sweep.objective=j_per_token", "sweep.within=", "energy.source=none"],
            "energy.source=none measures no energy",
        ),
    ],
)
def test_what_can_not_be_run_is_refused_with_the_remedy(
    overrides: list[str], expected: str
) -> None:
    message = refused(*overrides)
    assert expected in message
    assert "sweep-laptop.yaml" in message or "sweep.objective" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sweep.space.train.optimizer.learning_rat={low: 0.1, high: 1.0}", f"did you mean {RATE}?"),
        ("sweep.space.train.steps=[many]", "train.steps='many': Input should be a valid integer"),
        ("sweep.space.train.steps=5", "sweep.space.train.steps=5: Input should be a valid list"),
    ],
)
def test_one_key_of_the_space_can_be_set_and_is_refused_in_one_line(
    override: str, expected: str
) -> None:
    assert swept("sweep.space.train.steps=[80, 90]").space["train.steps"] == [80, 90]
    _, line = refused(override).splitlines()
    assert expected in line


def test_a_key_is_named_once_however_many_of_its_values_are_wrong() -> None:
    message = refused("sweep.space={train.steps: {low: 100.0, high: 200.0}}")
    assert message.count("train.steps") == 1


def test_a_file_without_a_sweep_is_for_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="panthalassa train"):
        load(ROOT / "jobs" / "configs" / "laptop.yaml", [])
    (tmp_path / "sweep.yaml").write_text("base: ../laptop.yaml\nsweep: {}")
    with pytest.raises(ConfigError, match="the name of a file beside it"):
        load(tmp_path / "sweep.yaml", [])
    (tmp_path / "above.yaml").write_text("base: sweep.yaml")
    (tmp_path / "sweep.yaml").write_text("base: laptop.yaml\nsweep: {}")
    with pytest.raises(ConfigError, match=r"base=sweep\.yaml has a base itself"):
        load(tmp_path / "above.yaml", [])


def test_a_sweep_is_not_for_train() -> None:
    with pytest.raises(ConfigError, match="`panthalassa sweep "):
        load_run(LAPTOP)


def test_a_part_of_a_mapping_can_be_searched() -> None:
    plan = swept(
        "stream.weights={sw: 1, en: 1}", "sweep.space={stream.weights.sw: [1, 2]}",
        "sweep.search=grid", "sweep.trials=",
    )  # fmt: skip
    assert [plan.build(point).stream.weights for point in plan.grid()] == [
        {"sw": 1, "en": 1},
        {"sw": 2, "en": 1},
    ]


def test_a_sweep_is_laid_over_its_base(tmp_path: Path) -> None:
    base = yaml.safe_load((ROOT / "jobs" / "configs" / "laptop.yaml").read_text())
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    above = {
        "base": "base.yaml",
        "train": {"optimizer": {"weight_decay": 0.5}},
        "sweep": {"space": {"train.steps": [50, 60]}, "search": "grid"},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(above))
    optimizer = load(tmp_path / "sweep.yaml", []).config.train.optimizer
    assert optimizer.weight_decay == 0.5
    assert optimizer.learning_rate == base["train"]["optimizer"]["learning_rate"]


def test_values_have_the_type_of_their_key() -> None:
    plan = swept(f"sweep.space={{{RATE}: [1e-4, 1]}}", "sweep.search=grid", "sweep.trials=")
    assert plan.space[RATE] == [1e-4, 1.0]  # YAML takes 1e-4 for a text
    assert [type(point[RATE]) for point in plan.grid()] == [float, float]


def test_a_whole_section_can_be_searched() -> None:
    plan = swept(
        "sweep.space={model: [{preset: laptop}, {preset: laptop, layers: 2}]}",
        "sweep.search=grid",
        "sweep.trials=",
    )
    configs = [plan.trial(f"t{n}", point, "", None) for n, point in enumerate(plan.grid())]
    assert [config.model.layers for config in configs] == [4, 2]


def test_a_trial_is_the_same_configuration_with_its_values() -> None:
    plan = swept()
    values = plan.draw(5)
    config = plan.trial("sweep-laptop-005", values, "http://host:5000", 32 * "a")
    assert config.train.optimizer.learning_rate == values[RATE]
    assert (config.run.name, config.run.directory) == ("sweep-laptop-005", "runs/sweep-laptop")
    assert config.tracking.parent == 32 * "a"
    other = plan.build({})
    assert config.model == other.model
    assert config.evaluation == other.evaluation


@given(
    st.integers(0, 1000),
    st.integers(1, 50),
    st.integers(1, 50),
    st.booleans(),
    st.booleans(),
)
def test_draws_stay_in_their_range_and_depend_on_their_number_alone(
    number: int, low: int, width: int, log: bool, whole: bool
) -> None:
    ends = (low, low + width) if whole else (float(low), float(low + width))
    domain = Range(low=ends[0], high=ends[1], log=log)
    plan = PLAN.config.sweep.model_copy(update={"space": {"k": domain}})
    drawn = Plan(PLAN.config.model_copy(update={"sweep": plan}), "", {})
    value = drawn.draw(number)["k"]
    assert ends[0] <= value <= ends[1]
    assert isinstance(value, int) == whole
    assert value == drawn.draw(number)["k"]


PLAN = swept()
