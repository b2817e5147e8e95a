"""What is proposed, who is stopped, who is best: from records alone."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panthalassa.config import Cluster
from panthalassa.config_file import load as load_run
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.storage import open_storage
from panthalassa.sweep.capacity import at_once, fits
from panthalassa.sweep.judge import Judge
from panthalassa.sweep.pareto import front, frugal
from panthalassa.sweep.results import Trial, read, record, trials
from panthalassa.sweep.run import Outcome, best_file, explain
from panthalassa.sweep.search import propose
from panthalassa.sweep.space import Plan, load
from panthalassa.train.placement import Node
from panthalassa.train.stop import REQUEST

LAPTOP = Path(__file__).parents[2] / "jobs" / "configs" / "sweep-laptop.yaml"
RATE = "train.optimizer.learning_rate"
PBT = ("sweep.search=pbt", "sweep.asha=false", "sweep.within=", "checkpoint.every=10")


def swept(*overrides: str) -> Plan:
    return load(LAPTOP, list(overrides))


def loss_of(values: dict[str, Any]) -> float:
    """Best at a rate of 3e-3."""
    return 3 + (math.log10(values[RATE]) + 2.5) ** 2


def tried(plan: Plan, count: int, **metrics: float) -> list[Trial]:
    known: list[Trial] = []
    for number in range(count):
        values = propose(plan, known)
        assert values is not None
        loss = {"loss": loss_of(values), **metrics}
        known.append(Trial(number, f"t{number}", values, "finished", 90, loss))
    return known


def test_tpe_learns_from_trials_that_are_over_and_proposes_the_same_from_the_same() -> None:
    plan = swept("sweep.search=tpe", "sweep.asha=false", "sweep.trials=40")
    known = tried(plan, 40)
    random, learned = known[:10], known[-10:]
    assert sum(t.metrics["loss"] for t in learned) < sum(t.metrics["loss"] for t in random)
    for changed in ({"state": "running", "metrics": {}}, {"state": "failed"}, {"state": "stopped"}):
        some = [*known[:30], replace(known[30], **changed)]
        assert propose(plan, some) == propose(plan, some)


def test_tpe_takes_two_objectives() -> None:
    plan = swept(
        "sweep.search=tpe", "sweep.asha=false", "sweep.within=", "sweep.trials=20",
        "sweep.objective=[loss, tokens_per_second]",
    )  # fmt: skip
    assert len(tried(plan, 20, tokens_per_second=5.0)) == 20


def test_a_grid_tries_each_combination_once() -> None:
    plan = swept(
        "sweep.space={train.steps: [50, 60], train.global_batch: [8, 16, 32]}",
        "sweep.search=grid",
        "sweep.trials=",
    )
    known: list[Trial] = []
    while (values := propose(plan, known)) is not None:
        known.append(Trial(len(known), "", values))
    found = {tuple(trial.values.values()) for trial in known}
    assert len(known) == len(found) == plan.count == 6


class Sweep:
    """Commands of a sweep, one after the other, with trials that are only acted."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, open_storage(str(folder))
        self.stopping = False
        self.starts: list[int] = []
        self.begin()

    def begin(self) -> None:
        self.running: list[int] = []
        self.judge = Judge(self.plan, self.folder, lambda: self.stopping, lambda line: None)

    def start(self) -> bool:
        number = self.judge.next()
        if number is not None:
            assert not read(self.folder, number).over, "a trial that is over was started again"
            self.judge.begins(number)
            self.running.append(number)
            self.starts.append(number)
        return number is not None

    def step(self, number: int, loss: float, steps: int = 90) -> None:
        """A trial goes on to its next evaluation, and ends when it is told to."""
        trial = read(self.folder, number)
        step = trial.step + 10
        looks = trial.looks | {step: {"loss": loss}}
        state = "finished" if step >= steps else "running"
        trial = replace(trial, step=step, looks=looks, metrics={"loss": loss})
        record(self.folder, trial)
        self.judge.look(number, step, steps)
        judged = read(self.folder, number)
        if judged.over or state == "finished":
            record(self.folder, replace(judged, state=judged.state if judged.over else state))
            self.end(number)

    def end(self, number: int, error: bool = False) -> None:
        self.running.remove(number)
        self.judge.ended(number, error)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["start", "step", "step", "step", "die", "kill"]), st.integers(0, 9)),
    max_size=40,
)


@pytest.mark.parametrize("search", ["random", "tpe", "pbt"])
@settings(max_examples=25)
@given(actions=ACTIONS)
def test_however_often_a_sweep_is_killed_each_trial_is_run_to_its_end_once(
    search: str, actions: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each decision is on record before it is acted on: the next command goes on from the records."""
    asha = str(search != "pbt").lower()
    plan = PLANS[search] = PLANS.get(search) or swept(
        f"sweep.search={search}", f"sweep.asha={asha}", "sweep.trials=4",
        f"sweep.space={{{RATE}: {{low: 1.0e-4, high: 1.0e-2, log: true}}}}",
        "sweep.within=", "checkpoint.every=10",
    )  # fmt: skip
    sweep = Sweep(plan, tmp_path_factory.mktemp("sweep"))
    for action, chance in actions:
        one = sweep.running[chance % len(sweep.running)] if sweep.running else None
        if action == "start" and len(sweep.running) < 4:
            sweep.start()
        elif action == "kill":
            sweep.begin()
        elif one is not None and action == "step":
            sweep.step(one, loss_of(read(sweep.folder, one).values))
        elif one is not None and action == "die":
            sweep.end(one, error=True)
    while sweep.start() or sweep.running:
        for number in list(sweep.running):
            sweep.step(number, loss_of(read(sweep.folder, number).values))
    assert sweep.judge.complete
    known = trials(sweep.folder)
    assert all(trial.over for trial in known)
    assert len(known) == 4 if search != "pbt" else len(known) >= 4


PLANS: dict[str, Plan] = {}


def test_asha_lets_the_best_pass_and_remembers_after_a_kill(tmp_path: Path) -> None:
    sweep = Sweep(swept(), tmp_path)
    for _ in range(4):
        sweep.start()
    for number, loss in enumerate([5.0, 4.0, 6.0, 3.0]):
        sweep.begin()
        sweep.running = [number]
        sweep.step(number, loss)
    assert [read(sweep.folder, n).state for n in range(4)] == [
        "running", "running", "stopped", "running",
    ]  # fmt: skip


def test_pbt_replaces_the_worst_by_a_branch_of_the_best(tmp_path: Path) -> None:
    plan = swept(*PBT, "sweep.trials=4")
    sweep = Sweep(plan, tmp_path)
    for _ in range(4):
        assert sweep.start()
    assert not sweep.start()
    assert not sweep.judge.complete, "branches may follow"
    for number, loss in enumerate([4.0, 3.0, 5.0, 6.0]):
        sweep.step(number, loss)
    states = [trial.state for trial in trials(sweep.folder)]
    assert states == ["running", "running", "stopped", "stopped", "running", "running"]
    branch, best = read(sweep.folder, 5), read(sweep.folder, 1)
    assert branch.parent == best.run
    assert branch.values != best.values
    assert plan.build(branch.values)
    assert sweep.start()
    assert sweep.start()
    assert sweep.starts == [0, 1, 2, 3, 4, 5]


def test_the_best_that_is_a_branch_tells_whose_steps_it_begins_with(tmp_path: Path) -> None:
    """Also when that one was a branch; and the file can be run all the same."""
    plan = swept(*PBT, "sweep.trials=2")
    known = [
        Trial(0, "t0", {RATE: 1e-3}),
        Trial(1, "t1", {RATE: 2e-3}, parent="t0", branched=10),
        Trial(2, "t2", {RATE: 4e-3}, "finished", metrics={"loss": 3.0}, parent="t1", branched=30),
    ]
    (tmp_path / "best.yaml").write_text(text := best_file(plan, known[2], known))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# trial 2 is a branch, and its result not of these values alone",
        f"# its steps to 30 are those of trial 1, with {RATE} 0.002",
        f"# its steps to 10 are those of trial 0, with {RATE} 0.001",
    ]
    assert load_run(tmp_path / "best.yaml").train.optimizer.learning_rate == 4e-3
    outcome = Outcome(plan, known, known[2:], "best.yaml", False, "", "")
    assert f"a branch: its steps to 30 are those of trial 1, with {RATE} 0.002" in [
        text for _, text in explain(outcome)
    ]
    assert not best_file(plan, known[0], known).startswith("#")


def test_a_sweep_of_which_nothing_came_has_failed_if_it_was_not_stopped() -> None:
    failed = [Trial(n, f"t{n}", {}, "failed", problem="diverged") for n in range(2)]
    outcome = Outcome(swept(), failed, [], None, False, "", "")
    assert "all 2 trials failed" in str(outcome.failed)
    assert replace(outcome, interrupted=True).failed is None
    assert replace(outcome, trials=[*failed, Trial(2, "t2", {}, "finished")]).failed is None
    assert replace(outcome, trials=[]).failed is None


def test_a_hung_trial_is_given_up_and_a_dead_one_recorded(tmp_path: Path) -> None:
    sweep = Sweep(swept("sweep.silent_seconds=0.001"), tmp_path)
    sweep.start()
    sweep.start()
    time.sleep(0.01)
    assert sweep.judge.hangs(0)
    assert not sweep.judge.hangs(0), "once"
    sweep.end(0)
    sweep.end(1, error=True)
    hung, dead = trials(sweep.folder)
    assert hung.state == dead.state == "failed"
    assert "sweep.silent_seconds" in str(hung.problem)
    assert "cluster.max_failures" in str(dead.problem)
    assert sweep.start(), "the sweep goes on"


def test_the_first_trial_whose_nodes_tell_no_energy_ends_a_sweep_that_is_for_it(
    tmp_path: Path,
) -> None:
    plan = swept("sweep.objective=j_per_token", "sweep.asha=false", "sweep.within=")
    loss = {"loss": 5.0, "tokens": 100.0}

    def end(sweep: Sweep, number: int, problem: str, **metrics: float) -> str | None:
        trial = read(sweep.folder, number)
        record(sweep.folder, replace(trial, state="failed", problem=problem, metrics=metrics))
        sweep.end(number)
        return sweep.judge.problem

    for metered in (False, True):
        sweep = Sweep(plan, tmp_path / str(metered))
        for _ in range(4):
            assert sweep.start()
        assert end(sweep, 0, "no room") is None, "it failed before it could have any"
        assert sweep.start()
        if metered:
            assert end(sweep, 1, "diverged", **loss, j_per_token=0.1) is None
        problem = end(sweep, 2, "its run reports no j_per_token: no RAPL", **loss)
        assert sweep.start() == metered, "nodes may differ"
        assert not metered or problem is None
        assert metered or "report: its run reports no j_per_token: no RAPL. Set" in str(problem)
        assert metered or sweep.judge.complete
        sweep.judge.stop_runs()
        assert sweep.folder.exists(f"{read(sweep.folder, 3).run}/{REQUEST}") != metered


def test_a_trial_that_trains_without_an_evaluation_is_not_hung(tmp_path: Path) -> None:
    sweep = Sweep(swept("sweep.silent_seconds=0.01"), tmp_path)
    sweep.start()
    for step in (1, 2):
        record(sweep.folder, replace(read(sweep.folder, 0), step=step))
        time.sleep(0.02)
        assert not sweep.judge.hangs(0)
    time.sleep(0.02)
    assert sweep.judge.hangs(0)


def test_a_lost_record_is_named(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    for number in (0, 2):
        record(folder, Trial(number, "t", {}))
    with pytest.raises(PanthalassaError, match=r"trials/00001\.json is missing"):
        trials(folder)


METRICS = st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 3.0]))


@given(st.lists(st.tuples(METRICS, st.sampled_from(["finished", "stopped", "failed"])), max_size=8))
def test_the_front_holds_all_that_none_beats(found: list[tuple[tuple[float, float], Any]]) -> None:
    known = [
        Trial(n, "", {}, state, metrics={"loss": loss, "tokens_per_second": speed})
        for n, ((loss, speed), state) in enumerate(found)
    ]
    best = front(known, ["loss", "tokens_per_second"])
    done = [trial for trial in known if trial.state == "finished"]

    def beats(a: Trial, b: Trial) -> bool:
        less, more = (a.metrics[m] - b.metrics[m] for m in ("loss", "tokens_per_second"))
        return less <= 0 and more >= 0 and (less, more) != (0, 0)

    for trial in done:
        assert (trial in best) != any(beats(other, trial) for other in done)
    assert [t.metrics["loss"] for t in best] == sorted(t.metrics["loss"] for t in best)


def finished(*metrics: dict[str, float]) -> Sequence[Trial]:
    return [Trial(n, "", {}, "finished", metrics=found) for n, found in enumerate(metrics)]


def test_of_losses_within_one_percent_the_least_energy_is_chosen() -> None:
    known = finished(
        {"loss": 3.0, "joules": 90.0},
        {"loss": 3.02, "joules": 60.0},
        {"loss": 3.029, "joules": 70.0},
        {"loss": 3.031, "joules": 10.0},
        {"loss": 3.01},
    )
    chosen = frugal(known, 0.01)
    assert chosen
    assert chosen.number == 1
    assert frugal(finished({"loss": 3.0}), 0.01) is None
    assert frugal([], 0.01) is None


@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=5),
    st.integers(1, 4),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_trials_never_need_more_than_the_nodes_have(
    quarters: list[int], workers: int, cpus: float
) -> None:
    nodes = [{"CPU": count / 4} for count in quarters]
    cluster = Cluster(workers=workers, cpus_per_worker=cpus)
    count = fits(nodes, cluster, 1)
    assert count * (workers * cpus + 0.5) <= sum(node["CPU"] for node in nodes)
    assert fits([{"CPU": workers * cpus + 0.5}], cluster, 1) == 1
    assert fits([*nodes, {"CPU": workers * cpus + 0.5}], cluster, 1) >= count


def test_more_trials_than_ever_fit_are_refused() -> None:
    def node(free: float, scaled: bool = False) -> Node:
        return Node("a", {"CPU": 4.0}, {"CPU": free}, scaled=scaled)

    assert at_once(swept(), [node(4.0)]) == 4
    assert at_once(swept(), [node(2.0)]) == 2, "as many as have room now"
    assert at_once(swept(), [node(0.0)]) == 1, "which waits"
    assert at_once(swept("sweep.concurrent=3"), [node(0.0)]) == 3
    assert at_once(swept("sweep.concurrent=9"), [node(4.0, scaled=True)]) == 9
    energy = "sweep.objective=j_per_token", "sweep.within="
    assert at_once(swept(*energy), [node(4.0)]) == 1, "CPUs tell what all trials take"
    with pytest.raises(ConfigError, match=r"set sweep\.concurrent=1, or give ranks GPUs"):
        at_once(swept(*energy, "sweep.concurrent=2"), [node(4.0)])
    with pytest.raises(ConfigError, match=r"5 trials at a time .*holds 4 at most"):
        at_once(swept("sweep.concurrent=5"), [node(4.0)])
    with pytest.raises(ConfigError, match=r"one needs 8 x \(0.5 CPU\)"):
        at_once(swept("cluster.workers=8"), [node(4.0)])
    with pytest.raises(ConfigError, match="search=pbt"):
        at_once(swept(*PBT), [node(4.0)])
    either = "sweep.space={cluster: [{workers: 8}, {workers: 1}]}"
    with pytest.raises(ConfigError, match="one needs 8 x"):
        at_once(swept(either, "sweep.search=grid", "sweep.trials="), [node(4.0)])
