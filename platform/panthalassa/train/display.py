"""A run in the terminal: a live line of progress, and a summary at the end."""

import sys
import time
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from panthalassa.config import Config
from panthalassa.config_finetune import loss_unit
from panthalassa.energy.table import explain as explain_energy
from panthalassa.train.events import (
    Ended,
    Evaluated,
    Event,
    Failed,
    Generated,
    Launched,
    Lost,
    Metered,
    NodeLoad,
    Notice,
    Ready,
    Saved,
    Spent,
    Started,
    Step,
    Waited,
)
from panthalassa.train.goodput import explain

if TYPE_CHECKING:  # torch takes seconds to import, and who follows a job needs none
    from panthalassa.train.run import Outcome

LINES = 20
"""Progress lines of a whole run where there is no terminal,"""
SILENCE = 5.0
"""and the seconds after which there is another one in any case."""

STOPPED = "stopped as asked; the same command goes on"


class Display:
    """Shows events as they come; use as a context and call `show`."""

    def __init__(self, config: Config, console: Console, began: float | None = None) -> None:
        self.began = began or time.time()
        self.console = console
        self.steps = config.train.steps
        self.checkpoint = "none yet"
        self.metered = False
        self.parts: list[Started] | None = []
        self.printed: float | None = None
        self.progress = progress_bar(console)
        self.task = self.progress.add_task("starting", total=self.steps)

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        match event:
            case Started():
                if self.parts is not None:
                    self.parts.append(event)
                self.progress.update(self.task, description=f"{event.part}: {event.seconds:.1f} s")
            case Ready():
                self._ready(event)
            case Step():
                self._step(event)
            case Evaluated():
                self._print(
                    f"held-out loss {event.loss:.4f} after step {event.step} "
                    f"({event.tokens:,} tokens)"
                )
            case Saved():
                self.checkpoint = f"step {event.step}"
                self._print(
                    f"checkpoint {event.uri}: {event.size / 1e6:.1f} MB in {event.seconds:.2f} s"
                )
            case Notice():
                self._print(event.text)
            case Launched():
                ranks = f"{event.workers} rank{'s' * (event.workers > 1)}"
                self._print(f"starting {ranks} on {event.nodes} node{'s' * (event.nodes > 1)}")
            case Lost():
                self.began, self.parts = time.time(), []
                if not event.planned:
                    self._print(f"the ranks were lost: {event.reason}")
            case Waited() if self.parts is not None:
                self.parts.append(Started("places", event.seconds))
            case Metered():
                self.metered = True
            case Generated() | Ended() | Failed() | Waited() | Spent() | NodeLoad():
                pass  # in the summary

    def _ready(self, event: Ready) -> None:
        peak = "measured matmul peak" if event.peak_is_measured else "peak"
        part = "" if event.trained == event.parameters else f", {event.trained:,} of them trained,"
        self._print(
            f"{event.parameters:,} parameters{part} on {event.dp_size} data-parallel x {event.tp_size} "
            f"tensor-parallel ranks; {peak} {event.peak_flops / 1e9:,.0f} GFLOP/s"
        )
        self._print(f"energy: {event.power}")
        if event.first_step:
            self.checkpoint = f"step {event.first_step}"
            self._print(f"going on after step {event.first_step}")
        self.progress.update(self.task, completed=event.first_step)

    def _step(self, event: Step) -> None:
        if self.parts:
            parts = [*self.parts, Started("first step", event.seconds)]
            whole = event.at - self.began
            listed = ", ".join(f"{part.part} {part.seconds:.1f}" for part in parts)
            self._print(f"first step after {whole:.1f} s: {listed}")
            self.parts = None
        energy = "energy in sums only" if self.metered else "no power source"
        if event.joules is not None:
            energy = f"{event.joules:.1f} J"
        text = (
            f"loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
            f"{event.tokens_per_second:,.0f} tokens/s  {energy}  checkpoint {self.checkpoint}"
        )
        self.progress.update(self.task, completed=event.step, description=text)
        self.printed = self.printed or event.at
        due = event.step % max(1, self.steps // LINES) == 0 or event.at > self.printed + SILENCE
        if due and not self.console.is_terminal:
            self.printed = event.at
            self._print(f"step {event.step}/{self.steps}  {text}")

    def _print(self, text: str) -> None:
        self.console.print(literal(text), soft_wrap=True)


class _GivesWay(TextColumn):
    """Text that is cut off first where a terminal is narrow."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def progress_bar(console: Console) -> Progress:
    """The live line of a run, where there is a terminal."""
    return Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=24 if console.width > 110 else 8),
        _GivesWay("{task.description}", markup=False, table_column=Column()),
        TimeRemainingColumn(compact=True),
        console=console,
        refresh_per_second=2,
        disable=not console.is_terminal,
    )


def literal(text: str) -> Text:
    """The text as it is, no markup and no emoji in it, and control characters spelled out."""
    escaped = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text
    )
    return Text("".join(escaped))


def summarize(outcome: "Outcome", console: Console) -> None:
    """Print what a run came to."""
    history, ended = outcome.history, outcome.history.ended
    lines: list[tuple[str, str]] = []
    if ended:
        how = STOPPED if ended.interrupted else "complete"
        lines.append(("run", f"{outcome.config.run.name}: {how}, after step {ended.step}"))
    if history.evaluations:
        ends = dict.fromkeys((history.evaluations[0], history.evaluations[-1]))
        losses = ", ".join(f"{found.loss:.4f} after step {found.step}" for found in ends)
        tuning, unigram = outcome.config.finetune, outcome.manifest.unigram_loss
        unit = loss_unit(tuning and tuning.objective)
        lines.append(("held-out loss", f"{losses} (nats a {unit})"))
        if unit == "token":
            lines.append(("unigram loss", f"{unigram:.4f} on all held-out text"))
    if history.steps:
        lines += _speed(outcome).items()
    lines += explain(outcome.goodput)
    if outcome.energy:
        lines += explain_energy(outcome.energy)
    if history.saved:
        lines.append(("checkpoint", history.saved.uri))
    lines.append(("MLflow", outcome.tracking_problem or outcome.tracking_uri))
    if outcome.tracking_uri.startswith("sqlite:"):
        mlflow = Path(sys.executable).parent / "mlflow"
        lines.append(("", f"{mlflow} ui --backend-store-uri {outcome.tracking_uri}"))
    for written in history.texts:
        lines.append(("continuation", f"{written.prompt}|{' '.join(written.text.split())}"))
    console.print()
    for name, text in lines:
        console.print(literal(f"{name:14} {text}"), soft_wrap=True)


def _speed(outcome: "Outcome") -> dict[str, str]:
    sums = outcome.history.sums
    ready = outcome.history.ready
    peak = "the matmul peak measured here" if ready and ready.peak_is_measured else "the peak"
    energy = ready.power if ready else ""
    if sums.metered:
        each = sums.joules / sums.metered
        energy = f"{each:.1f} J an iteration over {sums.metered} steps ({energy})"
    energy_row = {} if outcome.energy else {"energy": energy}  # else the account tells
    return {
        "speed": f"{sums.positions / sums.seconds:,.0f} tokens/s, {sums.mfu / sums.seconds:.1%} of "
        f"{peak}; {sums.data_seconds / sums.seconds:.1%} of the time waiting for data",
        **energy_row,
        "time": f"{outcome.seconds:.0f} s in all, {sums.seconds:.0f} s in steps",
    }
