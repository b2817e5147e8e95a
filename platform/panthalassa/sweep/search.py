"""What is tried next, and what is not worth going on: pure functions of the plan and the records.

A point of the grid or a random one depends on its number alone, and one of TPE on the records, from
which Optuna's study is built anew for each proposal: there is no state to keep or restore. ASHA is Ray
Tune's, fed with the records when the sweep begins.

PBT replaces a trial that is among the worst at an evaluation by a branch of one of the best, with other
values: a trial of its own. Ray Tune's PBT instead pauses the actor and restores another's checkpoint in
it; then a run's folder would change hands, and neither its ledger nor its account would tell what it
was trained on.
"""

import math
import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from panthalassa.sweep.config import Objective, Range
from panthalassa.sweep.pareto import signed
from panthalassa.sweep.results import Trial
from panthalassa.sweep.space import Plan, Values

QUANTILE = 0.25
"""PBT: the share of a population that is worst, or best."""
RESAMPLE = 0.25
"""PBT: how often a value is drawn anew, instead of changed a little."""
FACTORS = (0.8, 1.2)
"""PBT: what a number is multiplied with (Jaderberg et al. 2017)."""
LAST_STEP = 1 << 40
"""ASHA's own last step, which none reaches: how far a trial goes is for its configuration to say."""
STARTS = 10
"""TPE: trials that are drawn at random before it has learnt enough."""


def propose(plan: Plan, known: Sequence[Trial]) -> Values | None:
    """The next point; None when there are no more."""
    number = len(known)
    if number >= plan.count:
        return None
    match plan.sweep.search:
        case "grid":
            return list(plan.grid())[number]
        case "tpe":
            return _tpe(plan, known)
        case _:
            return plan.draw(number)


def _tpe(plan: Plan, known: Sequence[Trial]) -> Values:
    import optuna  # takes a second
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {key: _distribution(values) for key, values in plan.space.items()}
    objectives = plan.sweep.objective
    study = optuna.create_study(
        directions=["minimize"] * len(objectives),
        sampler=optuna.samplers.TPESampler(
            seed=plan.config.run.seed + len(known), constant_liar=True, n_startup_trials=STARTS
        ),
    )
    for trial in known:
        scores = _scores(trial.metrics, objectives)
        state = TrialState.COMPLETE if trial.over else TrialState.RUNNING
        if trial.state == "failed" or (trial.over and len(scores) < len(objectives)):
            state = TrialState.FAIL
        elif trial.state == "stopped":
            state = TrialState.PRUNED
        looks = {step: _scores(look, objectives)[0] for step, look in trial.looks.items()}
        study.add_trial(
            create_trial(
                state=state,
                values=scores if state == TrialState.COMPLETE else None,
                params={key: _place(plan.space[key], value) for key, value in trial.values.items()},
                distributions=space,
                intermediate_values=looks if len(objectives) == 1 else None,
            )
        )
    found = study.ask(space).params
    return {
        key: values[found[key]] if isinstance(values, list) else found[key]
        for key, values in plan.space.items()
    }


def _scores(metrics: Mapping[str, float], objectives: Sequence[Objective]) -> list[float]:
    """Those objectives that are known, lower is better."""
    found = (signed(name, metrics) for name in objectives)
    return [score for score in found if score is not None]


def _place(values: list[Any] | Range, value: Any) -> Any:
    return values.index(value) if isinstance(values, list) else value


def _distribution(values: list[Any] | Range) -> Any:
    from optuna import distributions

    if isinstance(values, list):  # of which Optuna knows the places: it takes no lists or sections
        return distributions.CategoricalDistribution(list(range(len(values))))
    if values.whole:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)


class Rule(Protocol):
    """Looks at a trial at one of its evaluations."""

    def behind(self, trial: Trial, step: int, known: Sequence[Trial]) -> bool:
        """Whether it shall be stopped after `step`."""


class Halving:
    """Ray Tune's ASHA (Li et al. 2020), with the evaluations on record."""

    def __init__(self, plan: Plan, known: Sequence[Trial]) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._objective = plan.sweep.objective[0]
        self._asha: Any = ASHAScheduler(
            time_attr="step",
            metric="score",
            mode="min",
            max_t=LAST_STEP,
            grace_period=plan.config.evaluation.every,
            reduction_factor=plan.sweep.reduction,
        )
        self._added: set[int] = set()
        for trial in known:
            for step in sorted(trial.looks):
                self.behind(trial, step, known)

    def behind(self, trial: Trial, step: int, known: Sequence[Trial]) -> bool:
        stub = SimpleNamespace(trial_id=trial.number)
        if trial.number not in self._added:
            self._added.add(trial.number)
            self._asha.on_trial_add(None, stub)
        score = signed(self._objective, trial.looks[step])
        told = self._asha.on_trial_result(None, stub, {"step": step, "score": score})
        return bool(told == self._asha.STOP)


class Population:
    """PBT: a trial is behind when it is in the worst quantile of those that were evaluated at that step,
    if they are half of the population."""

    def __init__(self, plan: Plan) -> None:
        self._objective, self._size = plan.sweep.objective[0], plan.count

    def behind(self, trial: Trial, step: int, known: Sequence[Trial]) -> bool:
        ranked = self._ranked(step, known)
        if len(ranked) < max(2, self._size / 2):
            return False
        worst = ranked[-math.ceil(len(ranked) * QUANTILE) :]
        return trial.number in [other.number for other in worst]

    def _ranked(self, step: int, known: Sequence[Trial]) -> list[Trial]:
        """Those that have been evaluated at a step, the best first."""
        scores = {
            t.number: signed(self._objective, t.looks[step]) for t in known if step in t.looks
        }
        return sorted(
            (trial for trial in known if scores.get(trial.number) is not None),
            key=lambda trial: scores[trial.number] or 0.0,
        )

    def branch(self, plan: Plan, trial: Trial, step: int, known: Sequence[Trial]) -> Trial | None:
        """What takes the place of a trial that is behind: a branch of one of the best that still train;
        None when there is none."""
        ranked = self._ranked(step, known)
        best = ranked[: math.ceil(len(ranked) * QUANTILE)]
        donors = [other for other in best if not other.over and other.number != trial.number]
        if not donors:
            return None
        number = len(known)
        chance = random.Random(f"{plan.config.run.seed} {number} branch")
        donor = chance.choice(donors)
        fresh = plan.draw(number)
        values = {
            key: fresh[key]
            if chance.random() < RESAMPLE
            else _nearby(values, donor.values[key], chance)
            for key, values in plan.space.items()
        }
        return Trial(number, f"{plan.config.run.name}-{number:03d}", values, parent=donor.run)


def _nearby(values: list[Any] | Range, value: Any, chance: random.Random) -> Any:
    if isinstance(values, list):
        place = values.index(value) + chance.choice((-1, 1))
        return values[min(len(values) - 1, max(0, place))]
    found = min(values.high, max(values.low, value * chance.choice(FACTORS)))
    return round(found) if values.whole else found
