"""Energy of a training run: each rank reads its own devices, and the ledger gets the sums.

Each device is claimed by one rank (`claim`). The callback reads the meter twice a step, without a wait
for the device, and books what came since under what the rank was at. The sums over the ranks travel with
those of the step; the detail by device is gathered every reporting window. So the energy of each step is
known on the driver as soon as the step is, and a death loses none that was told.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from ray.exceptions import RayError
from torch import distributed as dist

from panthalassa.energy.account import PEAK
from panthalassa.energy.lines import (
    Device,
    Joules,
    Line,
    Metering,
    Phase,
    Rest,
    Steps,
    StoodBy,
    Window,
)
from panthalassa.energy.meters import PERIODS, Absent, bound
from panthalassa.energy.windows import Reading, Windows
from panthalassa.line_ledger import Lost, Waited
from panthalassa.train import events
from panthalassa.train.agreement import everywhere, total
from panthalassa.train.callback import Callback
from panthalassa.train.claim import Claim
from panthalassa.train.events import Metered, Notice
from panthalassa.train.training_run import TrainingRun

WINDOW = 10.0
"""Seconds of a reporting window."""
PHASES: tuple[Phase, ...] = get_args(Phase)
WITHIN: tuple[Phase, ...] = ("step", "data_wait")


class Energy(Callback):
    """Joules of each step, summed over the meters of all ranks, and the lines of the energy ledger.

    Without any meter the metric is absent. When a meter is lost, the steps it missed have none.
    """

    def __init__(self, claim: Claim) -> None:
        meter = claim.meter
        self.claim = claim
        self.windows = None if isinstance(meter, Absent) else Windows(meter, claim.renew)
        self.metered = False
        self.refresh = 0.0
        """Of all ranks' devices, the slowest."""
        self.refused = False
        """Whether it was told that steps are too short."""
        self.problems: set[str] = set()
        """What was told of devices."""
        self.phase: Phase = "start"
        self.entered: set[Phase] = {"start"}
        """Since the last step."""
        self.spent: dict[Phase, float] = {}
        """Joules of this rank since the last step; NaN when not known."""
        self.mark = self._sample()
        self.step_began = self.mark.at
        self._forget()

    def _forget(self) -> None:
        """A reporting window begins."""
        self.window_began = self.mark.at
        self.detail: list[dict[str, float]] = [{} for _ in self.claim.names]
        self.known_seconds = 0.0
        self.problem: str | None = None
        self.peaks = [0.0] * len(self.claim.names)
        self.stretch = [0.0] * len(self.claim.names)
        self.stretch_seconds = 0.0

    def on_start(self, run: TrainingRun) -> None:
        meter = self.claim.meter
        mine: tuple[str, float, bool, dict[str, float | None]] | None = None
        if not isinstance(meter, Absent):
            counters = meter.counters()
            told = {
                name: counters.get(device)
                for name, device in zip(self.claim.names, meter.devices, strict=True)
            }
            mine = meter.source, meter.refresh, meter.assumed, told
        ranks = everywhere([(mine, self.claim.blind)])
        found = [told for told, _ in ranks if told]
        self.metered = bool(found)
        if not self.metered:
            return
        run.enter_phase = self.enter
        self.refresh = max(refresh for _, refresh, _, _ in found)
        line = Metering(
            at=self.claim.opened,
            source=" + ".join(sorted({source for source, *_ in found})),
            refresh=self.refresh,
            devices={name: value for *_, told in found for name, value in told.items()},
            blind=sum(blind for _, blind in ranks),
        )
        run.poster.post(Metered(line))
        how = "assumed to be " if any(assumed for _, _, assumed, _ in found) else ""
        blind = f"; {line.blind} ranks have no power source" if line.blind else ""
        run.poster.post(
            Notice(
                f"energy: {line.source} of {len(line.devices)} devices in all, {how}renewed every "
                f"{self.refresh * 1e3:.3g} ms: ±{bound(self.refresh, WINDOW):.1%} of a window of "
                f"{WINDOW:g} s{blind}"
            )
        )

    def enter(self, phase: Phase) -> Phase:
        """What comes now is this; returns what it was."""
        before = self.phase
        self._book(self._sample())
        self.phase = phase
        self.entered.add(phase)
        return before

    def before_step(self, run: TrainingRun) -> None:
        self._book(self._sample())
        self.phase, self.step_began = "data_wait", self.mark.at

    def after_input(self, run: TrainingRun) -> None:
        if self.metered and time.perf_counter() - self.mark.at > self.refresh:
            self._book(self._sample())  # a shorter wait can not be told from the step
        self.phase = "step"

    def measure(self, run: TrainingRun) -> dict[str, float]:
        if not self.metered:
            return {}
        self._book(self._sample())
        self.phase = "other"
        spent = self.spent
        if self.entered:
            self.before = self.entered | {"other"}
        else:  # from step to step there is only what steps do
            self.before = set()
            spent["step"] = spent.get("step", 0.0) + spent.pop("other", 0.0)
        self.entered, self.spent = set(), {}
        joules = sum(spent.get(phase, 0.0) for phase in WITHIN)
        short = self.mark.at - self.step_began < PERIODS * self.refresh
        due = dist.get_rank() == 0 and self.mark.at - self.window_began >= WINDOW
        return {
            "joules": math.nan if short else joules,
            "short_for_energy": float(short),
            "energy_due": float(due),
            **{f"joules_{phase}": spent.get(phase, 0.0) for phase in PHASES},
        }

    def after_step(self, run: TrainingRun, step: events.Step) -> None:
        if not self.metered:
            return
        sums = run.measured
        each = {phase: _known(sums[f"joules_{phase}"]) for phase in PHASES}
        line = Steps(
            at=step.at,
            first=step.step,
            seconds=[round(step.seconds, 6)],
            tokens=[round(step.tokens_per_second * step.seconds)],
            joules=[_known(sums["joules_step"] + sums["joules_data_wait"])],
            data_wait=[each["data_wait"]],
            before={phase: each[phase] for phase in PHASES if phase in self.before},
        )
        run.poster.post(Metered(line))
        if sums["short_for_energy"] and not self.refused:
            self.refused = True
            run.poster.post(
                Notice(
                    f"energy: a step of {step.seconds:.3g} s gets no figure of its own, which takes "
                    f"{PERIODS} refresh periods, {PERIODS * self.refresh:.3g} s; sums stand"
                )
            )
        if sums["energy_due"]:
            self.report(run)

    def report(self, run: TrainingRun) -> float:
        """Gather the detail of the reporting window, and say when it ended; every rank calls it."""
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        self._book(self._sample())
        at = time.time()
        refresh = self.windows.meter.refresh if self.windows else 0.0
        told = everywhere([(self._devices(), refresh)])
        self._forget()
        self.refresh = max(refresh for _, refresh in told)
        devices = {name: device for found, _ in told for name, device in found.items()}
        run.poster.post(Metered(Window(at=at, refresh=self.refresh, devices=devices)))
        for name, device in devices.items():
            if device.problem and device.problem not in self.problems:
                self.problems.add(device.problem)
                run.poster.post(Notice(f"energy of {name} is not known: {device.problem}"))
        return at

    def finish(self, run: TrainingRun) -> None:
        """The attempt ends in order; every rank calls it."""
        if not self.metered:
            return
        at = self.report(run)
        sums = total(*(self.spent.get(phase, 0.0) for phase in PHASES))
        spent: Joules = {phase: _known(joules) for phase, joules in zip(PHASES, sums, strict=True)}
        spent = {phase: joules for phase, joules in spent.items() if joules != 0}
        run.poster.post(Metered(Rest(at=at, joules=spent)))

    def close(self) -> None:
        if self.windows:
            self.windows.close()

    def _sample(self) -> Reading:
        return self.windows.sample() if self.windows else Reading(time.perf_counter(), (), 0)

    def _book(self, now: Reading) -> None:
        """Put down what came since the last reading."""
        before, self.mark = self.mark, now
        if self.windows is None:
            return
        measured = self.windows.between(before, now)
        joules = math.nan if measured.joules is None else measured.joules
        self.spent[self.phase] = self.spent.get(self.phase, 0.0) + joules
        if measured.devices is None:
            self.problem = measured.problem
            self.stretch_seconds = 0.0
            return
        self.known_seconds += measured.seconds
        for detail, part in zip(self.detail, measured.devices, strict=True):
            detail[self.phase] = detail.get(self.phase, 0.0) + part
        self._note_peak(measured.devices, measured.seconds)

    def _note_peak(self, joules: Sequence[float], seconds: float) -> None:
        if self.stretch_seconds == 0.0:
            self.stretch = [0.0] * len(joules)
        self.stretch = [a + b for a, b in zip(self.stretch, joules, strict=True)]
        self.stretch_seconds += seconds
        if self.stretch_seconds >= max(PEAK, PERIODS * self.refresh):
            watts = [part / self.stretch_seconds for part in self.stretch]
            self.peaks = list(map(max, self.peaks, watts))
            self.stretch_seconds = 0.0

    def _devices(self) -> dict[str, Device]:
        if self.windows is None:
            return {}
        meter, seconds = self.windows.meter, self.known_seconds
        shown = [None] * len(meter.devices) if self.mark.joules is None else self.mark.joules
        found = {}
        for number, (name, device) in enumerate(zip(self.claim.names, meter.devices, strict=True)):
            detail, now = self.detail[number], shown[number]
            first = meter.counters().get(device)
            found[name] = Device(
                rank=dist.get_rank(),
                seconds=round(seconds, 6),
                joules={phase: round(part, 3) for phase, part in detail.items()},
                mean_watts=round(sum(detail.values()) / seconds, 3) if seconds > 0 else None,
                peak_watts=round(self.peaks[number], 3) or None,
                counter=None if first is None or now is None else round(first + now, 3),
                problem=self.problem,
                node=socket.gethostname(),
            )
        return found


class EnergyEnd(Callback):
    """Stands behind all other callbacks: what they do at the end belongs to the account, too."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def on_end(self, run: TrainingRun) -> None:
        self.energy.finish(run)


def _known(joules: float) -> float | None:
    return None if math.isnan(joules) else round(joules, 3)


def count_standby(claim: Claim, post: Callable[[list[events.Event]], object]) -> None:
    """Have a rank that trains nothing tell what its devices take, from a thread that ends with it, or
    when `post` fails because nobody is there any more."""
    if isinstance(claim.meter, Absent):
        return
    windows = Windows(claim.meter, claim.renew)

    def tell() -> None:
        before = windows.sample()
        while True:
            time.sleep(WINDOW)
            now = windows.sample()
            measured = windows.between(before, now)
            each = measured.devices or (None,) * len(claim.names)
            lines = [
                StoodBy(at=time.time(), device=name, seconds=measured.seconds, joules=joules)
                for name, joules in zip(claim.names, each, strict=True)
            ]
            try:
                post([Metered(line) for line in lines])
            except RayError:
                windows.close()
                return
            before = now

    threading.Thread(target=tell, daemon=True, name="standby energy").start()


def entry(event: events.Event) -> Line | None:
    """The line of the ledger that an event makes, if any."""
    match event:
        case Metered():
            return event.line
        case events.Waited():
            return Waited(at=time.time(), seconds=event.seconds)
        case events.Lost():
            return Lost(at=time.time(), planned=event.planned)
    return None
