"""What people see of a run: every number once, in words, and nothing that was not measured."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from panthalassa.config import Config
from panthalassa.config_file import build
from panthalassa.corpus.manifest import Manifest
from panthalassa.energy import lines as spent
from panthalassa.energy.account import Account
from panthalassa.energy.account import account as spent_on
from panthalassa.energy.lines import Metering
from panthalassa.line_ledger import Began
from panthalassa.train.display import Display, summarize
from panthalassa.train.events import (
    Ended,
    Evaluated,
    Event,
    Failed,
    Generated,
    Launched,
    Lost,
    Metered,
    Notice,
    Ready,
    Saved,
    Started,
    Step,
    Waited,
)
from panthalassa.train.goodput import Steps, account
from panthalassa.train.run import History, Outcome

NO_POWER = "no power source: no NVIDIA driver and no /sys/class/powercap"
BEGAN = 1_700_000_000.0
STORE = "sqlite:////home/somebody/runs/mlflow.db"

READY = Ready(
    parameters=3_900_000,
    trained=3_900_000,
    dp_size=2,
    tp_size=1,
    peak_flops=6.4e10,
    peak_is_measured=True,
    first_step=0,
    evaluations=(),
    power=NO_POWER,
)
TIMES = [Began(at=BEGAN), Steps(at=BEGAN + 60, first=1, last=40, seconds=40, data_seconds=10)]


def config_of(steps: int = 40) -> Config:
    tree = {
        "run": {"name": "small"},
        "corpus": {"directory": "data/x"},
        "model": {"preset": "laptop"},
        "train": {
            "steps": steps,
            "global_batch": 8,
            "micro_batch": 4,
            "sequence_length": 64,
            "schedule": {"warmup_steps": 1},
        },
    }
    return build(tree, [], "test", Config)


def step_of(step: int, joules: float | None = None, seconds: float = 0.5) -> Step:
    return Step(
        step=step,
        at=BEGAN + 12 + step / 2,
        loss=8 - step / 10,
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens=500,
        seconds=seconds,
        data_seconds=0.05,
        tokens_per_second=8 * 64 / seconds,
        mfu=0.25,
        joules=joules,
    )


def whole_run(joules: float | None = None, power: str = NO_POWER, steps: int = 40) -> list[Event]:
    """The events of an undisturbed run as rank 0 posts them."""
    events: list[Event] = [Started("Ray", 2.0), Started("workers", 3.0), Started("model", 1.5)]
    events += [replace(READY, power=power), Evaluated(0, 8.3178, 7_000)]
    events += [step_of(1, joules, seconds=4.0)]  # the first step warms up
    events += [step_of(step, joules) for step in range(2, steps + 1)]
    events += [
        Evaluated(steps, 3.25, 7_000),
        Generated("The sea ", "is deep\nand  cold"),
        Saved(steps, f"/runs/small/step-{steps}", 0.25, 46_800_000),
        Ended(steps, interrupted=False),
    ]
    return events


def manifest_of() -> Manifest:
    shard = {
        "path": "a.parquet",
        "domain": "en",
        "split": "train",
        "rows": 1,
        "tokens": 64,
        "row_groups": [1],
        "size": 1,
        "sha256": "0" * 64,
    }
    return Manifest.model_validate(
        {
            "sequence_length": 64,
            "vocabulary_size": 4096,
            "bos": 0,
            "eos": 1,
            "tokenizer_sha256": "",
            "documents": {},
            "characters": {},
            "text_bytes": {},
            "unigram_loss": 6.123456,
            "shards": [shard],
        }
    )


def console(terminal: bool = False) -> Console:
    return Console(file=StringIO(), width=200, highlight=False, force_terminal=terminal)


def written(target: Console) -> str:
    assert isinstance(target.file, StringIO)
    return target.file.getvalue()


def displayed(events: list[Event], steps: int = 40, terminal: bool = False) -> str:
    target = console(terminal)
    with Display(config_of(steps), target, BEGAN) as display:
        for event in events:
            display.show(event)
    return written(target)


def summarized(
    events: list[Event],
    uri: str = STORE,
    problem: str | None = None,
    steps: int = 40,
    energy: Account | None = None,
) -> str:
    history = History()
    for event in events:
        history.add(event)
    target, goodput = console(), account(TIMES)
    manifest = manifest_of()
    outcome = Outcome(config_of(steps), manifest, history, goodput, 61.4, uri, problem, energy)
    summarize(outcome, target)
    return written(target)


def line_of(text: str, name: str) -> str:
    """What the summary says under a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip()


def test_without_a_power_source_no_joule_is_claimed() -> None:
    for text in (displayed(whole_run()), displayed(whole_run(), terminal=True)):
        assert f"energy: {NO_POWER}" in text
        assert "no power source  checkpoint" in text
        assert " J" not in text
    summary = summarized(whole_run())
    assert line_of(summary, "energy") == NO_POWER
    assert " J" not in summary


def test_measured_energy_is_shown_with_its_source() -> None:
    events = whole_run(joules=12.5, power="NVML's energy counter of 2 GPUs")
    text = displayed(events)
    assert "energy: NVML's energy counter of 2 GPUs" in text
    assert "12.5 J  checkpoint" in text
    assert "no power source" not in text
    expected = "12.5 J an iteration over 39 steps (NVML's energy counter of 2 GPUs)"
    assert line_of(summarized(events), "energy") == expected


def test_steps_without_a_reading_do_not_lower_the_mean() -> None:
    events = whole_run(joules=10.0, power="RAPL")
    events = [
        replace(event, joules=None) if isinstance(event, Step) and event.step % 2 else event
        for event in events
    ]
    expected = "10.0 J an iteration over 20 steps (RAPL)"
    assert line_of(summarized(events), "energy") == expected


def test_a_meter_that_reads_nothing_at_all_is_no_source_of_zeros() -> None:
    """It had a source at the start, and no reading since."""
    summary = summarized(whole_run(joules=None, power="RAPL"))
    assert "0.0 J" not in summary
    assert "J an iteration" not in summary


def test_steps_too_short_for_a_figure_are_not_called_unpowered_and_the_account_is_shown() -> None:
    metering = Metering(at=BEGAN, source="nvml counter", refresh=0.1, devices={"GPU-0": None})
    steps = spent.Steps(at=BEGAN + 60, first=1, seconds=[0.5] * 40, tokens=[512] * 40,
                        joules=[50.0] * 40, data_wait=[None] * 40)  # fmt: skip
    run = whole_run(power="nvml counter")
    text = displayed([*run[:4], Metered(metering), *run[4:]])
    assert "energy in sums only  checkpoint" in text
    assert "no power source" not in text
    summary = summarized(run, energy=spent_on([metering, steps]))
    assert line_of(summary, "energy").startswith("2,000.0 J = 0.0005556 kWh of 1 device")
    assert line_of(summary, "J/iteration").startswith("50.00 ± 6.0% over 40 steps")


def test_the_summary_of_a_complete_run() -> None:
    summary = summarized(whole_run())
    assert line_of(summary, "run") == "small: complete, after step 40"
    losses = "8.3178 after step 0, 3.2500 after step 40 (nats a token)"
    assert line_of(summary, "held-out loss") == losses
    assert line_of(summary, "unigram loss").startswith("6.1235 ")
    speed = (
        "1,024 tokens/s, 25.0% of the matmul peak measured here; 10.0% of the time waiting for data"
    )
    assert line_of(summary, "speed") == speed
    assert line_of(summary, "goodput") == "50.0%: 30 s of 60 s trained the model"
    table = ["  productive         30.0 s  50.0%", "  start              20.0 s  33.3%"]
    assert [line for line in summary.splitlines() if line.startswith("  ")][:2] == table
    assert line_of(summary, "checkpoint") == "/runs/small/step-40"
    assert line_of(summary, "time") == "61 s in all, 20 s in steps"
    assert line_of(summary, "continuation") == "The sea |is deep and cold"


def test_the_speed_leaves_out_the_step_that_warms_up() -> None:
    """One slow first step, or a slower one, gives the same figure."""
    slower = [
        replace(event, seconds=400.0) if isinstance(event, Step) and event.step == 1 else event
        for event in whole_run()
    ]
    assert line_of(summarized(slower), "speed") == line_of(summarized(whole_run()), "speed")
    alone = summarized(whole_run(steps=2)[:6], steps=2)
    assert line_of(alone, "speed").startswith("128 tokens/s")  # better than nothing


def test_a_peak_that_is_known_is_not_called_measured() -> None:
    events = [
        replace(event, peak_is_measured=False) if isinstance(event, Ready) else event
        for event in whole_run()
    ]
    assert "25.0% of the peak;" in line_of(summarized(events), "speed")
    assert "ranks; peak 64 GFLOP/s" in displayed(events)
    assert "ranks; measured matmul peak 64 GFLOP/s" in displayed(whole_run())


def test_the_summary_says_how_to_open_a_local_mlflow() -> None:
    summary = summarized(whole_run())
    assert line_of(summary, "MLflow") == STORE
    assert f"mlflow ui --backend-store-uri {STORE}\n" in summary


def test_the_summary_leads_to_an_mlflow_server_or_says_why_there_is_none() -> None:
    server = summarized(whole_run(), uri="http://mlflow:5000")
    assert line_of(server, "MLflow") == "http://mlflow:5000"
    assert "mlflow ui" not in server
    problem = "MLflow at http://mlflow:5000 does not take the metrics: Connection refused"
    down = summarized(whole_run(), uri="http://mlflow:5000", problem=problem)
    assert line_of(down, "MLflow") == problem


def test_a_run_is_followed_line_by_line_where_there_is_no_terminal() -> None:
    lines = displayed(whole_run()).splitlines()
    assert "3,900,000 parameters on 2 data-parallel x 1 tensor-parallel ranks" in lines[0]
    assert "held-out loss 8.3178 after step 0 (7,000 tokens)" in lines
    # By the clock, since parts may overlap or leave gaps.
    (first,) = [line for line in lines if line.startswith("first step after")]
    assert first == "first step after 12.5 s: Ray 2.0, workers 3.0, model 1.5, first step 4.0"
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == [f"{step}/40" for step in range(2, 41, 2)]
    assert "loss 4.0000  lr 1.00e-03  1,024 tokens/s" in steps[-1]
    assert "checkpoint none yet" in steps[-1]
    assert "checkpoint /runs/small/step-40: 46.8 MB in 0.25 s" in lines


def test_a_long_run_is_heard_every_few_seconds() -> None:
    lines = displayed([READY, *map(step_of, range(1, 41))], steps=10_000).splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("step ")]
    assert steps == ["12/10000", "23/10000", "34/10000"]


def test_a_step_names_the_last_checkpoint() -> None:
    events: list[Event] = [READY, step_of(1), Saved(1, "/runs/x", 0.1, 1), step_of(2)]
    assert "checkpoint step 1\n" in displayed(events)


def test_a_terminal_shows_one_live_line() -> None:
    text = displayed(whole_run(), terminal=True)
    assert "step 40/40" in text
    assert "loss 4.0000" in text
    assert "\nstep 2/40" not in text


def test_a_resumed_run_says_where_it_goes_on_and_keeps_its_first_loss() -> None:
    earlier = (Evaluated(0, 8.3178, 7_000), Evaluated(20, 5.0, 7_000))
    events: list[Event] = [Started("Ray", 1.0), replace(READY, first_step=20, evaluations=earlier)]
    events += [step_of(step) for step in range(21, 41)]
    events += [Evaluated(40, 3.25, 7_000), Saved(40, "/runs/40", 0.1, 1), Ended(40, False)]
    text = displayed(events)
    assert "going on after step 20\n" in text
    assert "step 22/40" in text
    summary = summarized(events)
    assert line_of(summary, "held-out loss").startswith("8.3178 after step 0, 3.2500 after step 40")
    assert line_of(summary, "run") == "small: complete, after step 40"
    assert "going on" not in displayed(whole_run())


def test_a_restart_of_the_ranks_does_not_count_evaluations_twice() -> None:
    events: list[Event] = [READY, Evaluated(0, 8.3178, 7_000), step_of(1), step_of(2)]
    events += [replace(READY, first_step=1, evaluations=(Evaluated(0, 8.3178, 7_000),))]
    history = History()
    for event in [*events, step_of(2), Evaluated(2, 5.0, 7_000)]:
        history.add(event)
    assert [evaluation.step for evaluation in history.evaluations] == [0, 2]


def test_a_recovery_is_told_in_parts_as_the_first_start_was() -> None:
    start: list[Event] = [Waited(0.1), Launched(2, 1), Started("workers", 3.0), READY, step_of(1)]
    again: list[Event] = [
        Lost("rank 1 lost its connection to another rank"),
        Waited(0.2),
        Launched(1, 1),
        Started("workers", 4.0),
        READY,
        step_of(2),
    ]
    lines = displayed([*start, *again]).splitlines()
    assert "starting 2 ranks on 1 node" in lines
    assert "the ranks were lost: rank 1 lost its connection to another rank" in lines
    first, second = (line.partition("s: ")[2] for line in lines if line.startswith("first step"))
    assert first == "places 0.1, workers 3.0, first step 0.5"
    assert second == "places 0.2, workers 4.0, first step 0.5"


def test_an_interrupted_run_says_that_the_same_command_goes_on() -> None:
    events: list[Event] = [READY, Evaluated(0, 8.3178, 7_000)]
    events += [step_of(step) for step in range(1, 8)]
    events += [Notice("stopping after this step, with a checkpoint"), step_of(8)]
    events += [Saved(8, "/runs/small/step-8", 0.1, 1), Ended(8, interrupted=True)]
    assert "stopping after this step, with a checkpoint\n" in displayed(events)
    summary = summarized(events)
    how = "small: stopped as asked; the same command goes on, after step 8"
    assert line_of(summary, "run") == how
    assert line_of(summary, "checkpoint") == "/runs/small/step-8"
    assert "continuation" not in summary


def test_a_run_that_was_complete_already_has_a_summary_without_speed() -> None:
    earlier = (Evaluated(0, 8.3178, 7_000), Evaluated(40, 3.25, 7_000))
    events: list[Event] = [replace(READY, first_step=40, evaluations=earlier), Ended(40, False)]
    assert "going on after step 40" in displayed(events)
    summary = summarized(events)
    assert line_of(summary, "run") == "small: complete, after step 40"
    assert line_of(summary, "held-out loss").startswith("8.3178 after step 0, 3.2500 after step 40")
    assert "tokens/s" not in summary
    assert " J" not in summary


def test_a_failure_is_left_to_the_error_that_ends_the_run() -> None:
    assert "shard" not in displayed([READY, Failed("shard x is corrupt")])


LITERAL = "[bold]a[/bold] [red] [/] :ship: [link=http://x]y \\[z] 50%"


def test_prompts_and_continuations_are_printed_as_they_are() -> None:
    summary = summarized([READY, step_of(1), Generated(LITERAL, LITERAL), Ended(1, False)])
    assert line_of(summary, "continuation") == f"{LITERAL}|{LITERAL}"


@pytest.mark.parametrize("terminal", [False, True])
def test_paths_and_notices_are_printed_as_they_are(terminal: bool) -> None:
    power, uri, notice = f"none: {LITERAL}", f"/runs/{LITERAL}", f"look at {LITERAL}"
    events: list[Event] = [replace(READY, power=power), Saved(1, uri, 0.1, 1), Notice(notice)]
    text = displayed([Started(LITERAL, 1.0), *events, step_of(1)], terminal=terminal)
    for part in (power, uri, notice, f": {LITERAL} 1.0, first step"):
        assert part in text
    assert line_of(summarized([*events, step_of(1)], uri=uri), "MLflow") == uri


def test_a_continuation_can_not_steer_the_terminal() -> None:
    """A model that has learned little writes any byte, the escape among them."""
    summary = summarized([READY, Generated("a", "b\x1b[2Jc\x07d\x9be\x08\u202e"), Ended(0, False)])
    assert not set(summary) & set("\x1b\x07\x08\x9b")
