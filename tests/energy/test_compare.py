"""What a comparison promises: intervals that hold the truth as often as they say, or a refusal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config, Energy
from panthalassa.config_file import build
from panthalassa.energy.compare import (
    FEWEST,
    WARM_UP,
    Recorded,
    Sample,
    block_length,
    compare,
    difference,
    explain,
    open_run,
)
from panthalassa.energy.ledger import EnergyLedger
from panthalassa.energy.lines import Began, Line, Metering, Steps
from panthalassa.errors import PanthalassaError
from panthalassa.line_ledger import Lost
from panthalassa.storage import open_storage

T = 1_700_000_000.0


def config_of(*overrides: str) -> Config:
    tree = {
        "run": {"name": "small"},
        "corpus": {"directory": "data/x"},
        "model": {"preset": "laptop"},
        "train": {"steps": 400, "global_batch": 8, "micro_batch": 4, "sequence_length": 64},
    }
    return build(tree, list(overrides), "test", Config)


def correlated(chance: np.random.Generator, n: int, phi: float, mean: float) -> Sample:
    """An AR(1) series around `mean`."""
    noise = chance.normal(size=n + 50)
    for i in range(1, n + 50):
        noise[i] += phi * noise[i - 1]
    return Sample(mean * (1 + 0.05 * noise[50:]), np.ones(n), n, {})


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n: int, phi: float) -> None:
    chance, hits = np.random.default_rng(n), 0
    for _ in range(200):
        _, low, high = difference(correlated(chance, n, phi, 100), correlated(chance, n, phi, 78))
        hits += low <= -22 <= high
    assert 0.88 <= hits / 200 <= 0.99, "of a 95 % interval"


def test_blocks_grow_with_the_correlation() -> None:
    chance = np.random.default_rng(0)
    lengths = [block_length(correlated(chance, 1000, phi, 1.0).joules) for phi in (0, 0.5, 0.9)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 3 < 20 < lengths[2]
    assert block_length(np.ones(50)) == 1


@given(st.floats(0.1, 10), st.floats(1, 1e6), st.integers(FEWEST, 60))
@settings(deadline=None, max_examples=30)
def test_a_factor_without_noise_is_found_exactly(factor: float, joules: float, n: int) -> None:
    a = Sample(np.full(n, joules), np.ones(n), n, {})
    b = Sample(np.full(n, factor * joules), np.ones(n), n, {})
    assert difference(a, b) == pytest.approx([100 * (factor - 1)] * 3, abs=1e-6)


def recorded(
    joules: list[float | None], config: Config | None = None, source: str = "nvml counter",
    seconds: float = 1.0, name: str = "a",
) -> Recorded:  # fmt: skip
    """A run of such steps, in one stretch, of 512 tokens each."""
    n = len(joules)
    lines: list[Line] = [
        Metering(at=T, source=source, refresh=0.02, devices={"GPU-0": None}),
        Steps(at=T + n, first=1, seconds=[seconds] * n, tokens=[512] * n, joules=joules,
              data_wait=[0.0] * n, before={"start": 5.0}),
    ]  # fmt: skip
    return Recorded(f"runs/{name}", config or config_of(), lines)


def wave(n: int, scale: float) -> list[float | None]:
    return [scale * (100 + 10 * np.sin(step)) for step in range(n)]


@pytest.mark.parametrize("metric", ["j_per_iteration", "j_per_token"])
def test_a_run_that_takes_22_percent_less_is_found(metric: str) -> None:
    found = compare(recorded(wave(200, 1)), recorded(wave(230, 0.78), name="b"), metric)  # type: ignore[arg-type]
    assert found.low <= -22 <= found.high < 0
    assert found.percent == pytest.approx(-22, abs=0.5)
    told = dict(explain(found))
    assert told["difference"].startswith("-22.")
    assert "J/token" in told["difference"] or metric == "j_per_iteration"


def test_warm_up_and_disturbed_steps_are_left_out_and_counted() -> None:
    run = recorded([*([9999.0] * WARM_UP), *wave(60, 1), None, None])
    steps = Steps(at=T + 200, first=63 + WARM_UP, seconds=[1.0] * 5, tokens=[512] * 5,
                  joules=[5555.0, 100, 100, 100, 100], data_wait=[None] * 5,
                  before={"checkpoint": 3.0})  # fmt: skip
    again = [Lost(at=T + 201, planned=False), *recorded([9999.0] * WARM_UP).lines[:1]]
    last = steps.model_copy(update={"first": 68 + WARM_UP, "joules": [8888.0] * 3 + [100.0, 100.0]})
    disturbed = replace(run, lines=[*run.lines, steps, *again, last])
    sample = compare(disturbed, recorded(wave(60, 1), name="b")).a
    assert sample.left_out == {
        "warming up": 2 * WARM_UP,
        "whose energy is not known": 2,
        "behind an evaluation or a checkpoint": 1,
    }
    assert sample.steps == 60 + 4 + 2
    assert max(sample.joules) < 115


def test_short_steps_count_in_windows_that_are_long_enough() -> None:
    short = recorded(wave(200, 1), seconds=0.05)
    sample = compare(short, recorded(wave(60, 1), name="b")).a
    assert set(sample.amounts) == {4.0}, "ten refresh periods"


DIFFERENT = [
    (config_of("model.layers=3"), "nvml counter", "model.layers is 4 and 3"),
    (config_of("train.global_batch=16"), "nvml counter", "train.global_batch is 8 and 16"),
    (
        config_of("train.sequence_length=32"),
        "nvml counter",
        r"sequence_length is \[64\] and \[32\]",
    ),
    (config_of(), "rapl", "source of power is nvml counter and rapl"),
]


@pytest.mark.parametrize(("config", "source", "reason"), DIFFERENT)
def test_runs_that_are_not_alike_are_refused_or_marked(
    config: Config, source: str, reason: str
) -> None:
    a, b = recorded(wave(60, 1)), recorded(wave(60, 1), config, source, name="b")
    with pytest.raises(PanthalassaError, match=f"{reason}.*--allow"):
        compare(a, b)
    allowed = compare(a, b, allow=True)
    assert [name for name, _ in explain(allowed)].count("NOT COMPARABLE") == 1


def metered(run: Recorded, **changes: object) -> Recorded:
    """The run, with other meters."""
    first, *rest = run.lines
    return replace(run, lines=[first.model_copy(update=changes), *rest])


def test_a_run_without_a_power_source_is_never_compared() -> None:
    nothing = replace(recorded([None] * 60, name="b"), lines=[Began(at=T)])
    for allow in (False, True):
        with pytest.raises(PanthalassaError, match=r"energy of runs/b was not measured: no rank"):
            compare(recorded(wave(60, 1)), nothing, allow=allow)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"devices": {"GPU-0": None, "GPU-1": None}}, "number of devices is 1 and 2"),
        ({"blind": 4}, "4 ranks of runs/b could not measure"),
    ],
)
def test_other_devices_make_another_sum(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(PanthalassaError, match=f"{reason}.*--allow"):
        compare(recorded(wave(60, 1)), metered(recorded(wave(60, 1), name="b"), **changes))


def test_steps_of_unknown_energy_are_no_reason_to_train_for_longer() -> None:
    with pytest.raises(PanthalassaError, match=r"energy show runs/b` tells why"):
        compare(recorded(wave(60, 1)), recorded([None] * 60, name="b"))


def test_too_few_windows_are_refused_with_what_was_left_out() -> None:
    with pytest.raises(PanthalassaError, match=r"runs/b has 5 .*3 warming up"):
        compare(recorded(wave(60, 1)), recorded(wave(5 + WARM_UP, 1), name="b"))


def test_the_command_compares_runs_in_their_folders(tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 0.78)):
        run = open_storage(str(tmp_path / name))
        run.write("config.yaml", yaml.safe_dump(config_of().model_dump(mode="json")).encode())
        with EnergyLedger(run, Energy(), T, 1) as ledger:
            for line in recorded(wave(100, scale)).lines:
                ledger.note(line)
    assert isinstance(open_run(open_storage(str(tmp_path / "a"))).lines[0], Began)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    done = CliRunner().invoke(app, ["energy", "compare", *runs, "--metric", "j_per_token"])
    assert done.exit_code == 0, done.output
    assert "-22.0 % J/token" in done.output
    shown = CliRunner().invoke(app, ["energy", "show", runs[0]])
    assert "J/iteration" in shown.output
    assert (
        CliRunner().invoke(app, ["energy", "compare", runs[0], str(tmp_path / "c")]).exit_code == 1
    )


def in_phases(*parts: tuple[int, int]) -> Recorded:
    """Parts of so many steps, of so many tokens each."""
    tokens = [each for count, each in parts for _ in range(count)]
    run = recorded(
        wave(len(tokens), 1), config_of("stream.phases=[{from_step: 50, temperature: 2}]")
    )
    (metering, steps) = run.lines
    return replace(run, lines=[metering, steps.model_copy(update={"tokens": tokens})])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (((50, 512), (150, 256)), ((150, 512), (50, 256))),
        (((50, 512), (150, 256)), ((45, 512),)),
        (((150, 1024), (50, 512)), ((200, 512),)),
    ],
)
def test_runs_whose_steps_had_other_batches_or_lengths_are_refused(a: Any, b: Any) -> None:
    """In other shares of the run, in one that was stopped before, or after a change of the batch."""
    with pytest.raises(PanthalassaError, match="not comparable: tokens a step are"):
        compare(in_phases(*a), in_phases(*b))


def test_a_counter_that_stood_still_is_refused() -> None:
    with pytest.raises(PanthalassaError, match=r"took no energy: its nvml counter stood still"):
        compare(recorded(wave(60, 1)), recorded([0.0] * 60, name="b"))
