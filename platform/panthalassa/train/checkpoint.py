"""Checkpoints: the whole state of a run at a step, and which of them a run's folder keeps.

`step-00000100/` holds torch DCP's files, some a rank (`tensor_files`), and `checkpoint.json`. That one
is written last and is the commit: it says what the state belongs to (model, corpus, order, step,
samples) and carries the SHA-256 of every other file, taken by the rank that wrote it. `snapshot` writes
all that and `restore` reads it. A folder without a commit is a leftover of a crash, and the next save
removes it. One that was found corrupt is set aside as `corrupt-step-00000100`.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from panthalassa.config_finetune import Lora
from panthalassa.config_model import Model
from panthalassa.errors import CheckpointError, CorruptError
from panthalassa.model.transformer import parameters_by_name
from panthalassa.storage import Storage
from panthalassa.stream.curriculum import Phase, change, differences, resume
from panthalassa.stream.ledger import later_attempts
from panthalassa.train.events import Evaluated
from panthalassa.train.guard import NormGuard

COMMIT = "checkpoint.json"
PREFIX = "step-"
FORMAT: Final = 4
ASIDE = "corrupt-"

FileName = Annotated[str, Field(pattern=r"^(\.metadata|__\d+_\d+\.distcp)$")]
"""The files that DCP writes: a commit can name nothing outside its folder."""


class Commit(BaseModel):
    """The content of checkpoint.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: Literal[4] = FORMAT
    model: dict[str, Any]
    """The shape of the model; of one that has adapters, also these (`lora`) and the SHA-256 of the
    commit of the weights beneath them (`base`)."""
    phases: list[Phase]
    """The order of the samples: what the run went through, and what it planned."""
    attempt: int = 0
    """That committed it; 0 if none of a run."""
    step: int
    """Optimizer steps done."""
    samples: int
    """Samples consumed: with the phases, the whole state of the stream."""
    evaluations: list[Evaluated]
    """Held-out losses so far."""
    healthy: bool
    """Whether the loss was finite and no spike when the state was taken."""
    passed_over: list[tuple[int, int]] = []
    """Steps [first, end) that were undone by a rollback, and whose samples were left behind."""
    files: dict[FileName, str]
    """SHA-256 by file name."""
    sha256: str = ""
    """Of all the other fields: the commit, too, is verified."""

    @property
    def shape(self) -> Model:
        return Model.model_validate(
            {key: value for key, value in self.model.items() if key not in ("lora", "base")}
        )

    @property
    def lora(self) -> Lora | None:
        return Lora.model_validate(self.model["lora"]) if "lora" in self.model else None

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()

    def sealed(self) -> "Commit":
        return self.model_copy(update={"sha256": self.digest()})


def folder(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int:
    """The step of a checkpoint's folder."""
    return int(name.removeprefix(PREFIX))


def committed(run: Storage) -> list[str]:
    """The committed checkpoints of a run, oldest first."""
    names = [name for name in run.folders() if name.startswith(PREFIX)]
    return [name for name in names if run.exists(f"{name}/{COMMIT}")]


def torn(run: Storage) -> list[str]:
    """The checkpoints without a commit: left by a crash, or being written."""
    good = committed(run)
    return [name for name in run.folders() if name.startswith(PREFIX) and name not in good]


def candidates(run: Storage) -> tuple[list[str], list[str]]:
    """What `committed` and `torn` say of a run that goes on, without the newest that are overtaken.

    A crash leaves one checkpoint without a commit. Raises CheckpointError when there are several, and
    none with one: their commits were lost, and to begin anew would remove what they belonged to.
    """
    good, without = committed(run), torn(run)
    while good and _overtaken(run, good[-1]):
        good.pop()
    if len(without) > 1 and not good:
        raise all_corrupt(run, [f"{run.uri}/{name}/{COMMIT} is missing" for name in without])
    return good, without


def _overtaken(run: Storage, name: str) -> bool:
    """Whether a later attempt began before its step: it was committed in the moment in which its command
    lost the run, which had gone on from elsewhere."""
    try:
        commit = read_commit(run, name)
        later = later_attempts(run, commit.attempt) if commit.attempt else iter(())
        return any(attempt.first_step < commit.step for attempt in later)
    except CorruptError:
        return False  # whoever reads it says so


def read_commit(run: Storage, name: str) -> Commit:
    """Raises CorruptError when it is missing or not what was written, else CheckpointError."""
    place = f"{run.uri}/{name}/{COMMIT}"
    try:
        content = run.read(f"{name}/{COMMIT}")
    except FileNotFoundError as error:
        raise CorruptError(f"{place} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{place} can not be read: {error}") from error
    try:
        data = json.loads(content)
        written = data["format"] if isinstance(data, dict) else None
        if isinstance(written, int) and written != FORMAT:
            raise CheckpointError(
                f"{place} has format {written}, and this version reads {FORMAT}. Go on with the version "
                "that wrote it, or choose another run.name."
            )
        commit = Commit.model_validate(data)
    except ValidationError as error:
        raise CorruptError(f"{place} is corrupt: {error.errors()[0]['msg']}") from error
    except (ValueError, KeyError) as error:
        raise CorruptError(f"{place} is corrupt: it is no JSON of a commit") from error
    if commit.sha256 != commit.digest() or folder(commit.step) != name:
        raise CorruptError(f"{place} is corrupt: it is not what its SHA-256 says")
    return commit


def newest(run: Storage) -> tuple[str, Commit] | None:
    """The newest checkpoint with a good commit, its files unread; None when there are none at all.

    Raises CheckpointError when all commits are corrupt or lost.
    """
    corrupt = []
    for name in reversed(candidates(run)[0]):
        try:
            return name, read_commit(run, name)
        except CorruptError as error:
            corrupt.append(str(error))
    if corrupt:
        raise all_corrupt(run, corrupt)
    return None


def all_corrupt(run: Storage, reasons: list[str]) -> CheckpointError:
    return CheckpointError(
        f"no checkpoint of {run.uri} can be used: {'; '.join(reasons)}. All are left as they are. "
        "Restore one from a copy, or choose another run.name to begin anew."
    )


def known_good(run: Storage, step: int) -> str | None:
    """The newest committed checkpoint, of at most `step` steps, that was healthy when it was taken."""
    names = [name for name in committed(run) if name <= folder(step)]
    return next((name for name in reversed(names) if _healthy(run, name)), None)


def _healthy(run: Storage, name: str) -> bool:
    try:
        return read_commit(run, name).healthy
    except CheckpointError:
        return False


def unlike(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs of two models, as `Commit.model` describes them."""
    return [
        f"model.{key} is {there.get(key)} there, {here.get(key)} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    ]


def phases_from(
    run: Storage, commit: Commit, model: dict[str, Any], plan: list[Phase], may_change: bool
) -> list[Phase]:
    """The phases of a run that goes on from a checkpoint, with `model` and the phases of `plan`.

    With `may_change`, a plan that does not fit begins as a new phase. Raises CheckpointError when the
    checkpoint has another model, or other data.
    """
    other = unlike(commit.model, model)
    changed = differences(commit.phases, plan, commit.step)
    if changed and may_change and not other:
        return change(commit.phases, plan, commit.step)
    if other or changed:
        remedy = "" if other else ", or set stream.on_change=new_phase to begin a new phase"
        raise CheckpointError(
            f"checkpoint {run.uri}/{folder(commit.step)} belongs to another run: "
            f"{'; '.join([*other, *changed])}. "
            f"Choose another run.name, or restore the configuration that made it{remedy}."
        )
    return resume(commit.phases, plan, commit.step)


class State:
    """The tensors of a training run, as DCP saves and loads them in place."""

    STEPPED = ("weight.", "exp_avg.", "exp_avg_sq.")
    """How the names of those begin that change in the optimizer's step alone."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.weights = dict(parameters_by_name(model))
        self.trained = {
            name: weight for name, weight in self.weights.items() if weight.requires_grad
        }
        self.optimizer = optimizer
        self.guard = NormGuard(next(model.parameters()).device)

    def tensors(self) -> dict[str, Tensor]:
        """By name: weights that are trained, AdamW's two moments and its counter, the guard's, torch's
        random state."""
        found = {
            "rng": torch.get_rng_state(),
            "guard.norms": self.guard.norms,
            "guard.skips": self.guard.skips,
        }
        for name, parameter in self.trained.items():
            moments = self.optimizer.state[parameter]
            # AdamW counts in a float32 scalar on the parameter's device, the same for all parameters.
            updates = moments.setdefault("step", torch.zeros((), device=parameter.device))
            found.setdefault("updates", updates)
            for key in ("exp_avg", "exp_avg_sq"):
                moments.setdefault(key, torch.zeros_like(parameter, requires_grad=False))
                found[f"{key}.{name}"] = moments[key]
            found[f"weight.{name}"] = parameter.detach()
        return found

    def loaded(self, tensors: dict[str, Tensor]) -> None:
        """Take over what DCP wrote into `tensors`."""
        torch.set_rng_state(tensors["rng"])
        for parameter in self.trained.values():
            self.optimizer.state[parameter]["step"].copy_(tensors["updates"])


def remove(run: Storage, name: str) -> None:
    """Remove a checkpoint, its commit first, so that no half of it ever passes for a whole."""
    for file in (f"{name}/{COMMIT}", name):
        if run.exists(file):
            run.delete(file)


def set_aside(run: Storage, name: str) -> str:
    """Rename a checkpoint that shall not be used; returns the new name."""
    aside, number = f"{ASIDE}{name}", 1
    while run.exists(aside):
        number += 1
        aside = f"{ASIDE}{name}-{number}"
    run.move(name, aside)
    return aside


def clean(run: Storage, keep: int, step: int) -> None:
    """After the save of `step`: remove all but the newest `keep` checkpoints and the newest healthy one
    before them.

    What is behind `step` is overtaken, and removed, too. What was set aside goes when `keep` checkpoints
    are newer. A folder without a commit may be one that another save is writing, and is left alone.
    """
    good = []
    for name in committed(run):
        if name > folder(step):
            remove(run, name)
        else:
            good.append(name)
    old, kept = good[:-keep], good[-keep:]
    healthy = next((name for name in reversed(old) if _healthy(run, name)), None)
    for name in old:
        if name != healthy:
            remove(run, name)
    for name in run.folders():
        found = re.match(f"{ASIDE}({PREFIX}[0-9]+)", name)
        if found and len(kept) == keep and found[1] < kept[0]:
            run.delete(name)
