"""The energy ledger: what the ranks measured, one line each, below `energy/` of the run.

Consecutive steps are merged into a line of some seconds, in which each keeps its joules; reporting
windows, which list every device, into a line an hour. `account` tells from these lines what the energy
went to.
"""

import csv
import hashlib
import io
from contextlib import suppress

from panthalassa.config import Energy
from panthalassa.energy import account
from panthalassa.energy.devices import Devices
from panthalassa.energy.lines import LINE, Began, Line, Steps, Window, merged
from panthalassa.line_ledger import CommandLedger, Ledger
from panthalassa.storage import Storage

FOLDER = "energy"
DETAIL = "devices.csv"
MERGED = 5.0
"""Seconds of steps in one line, when nothing comes between them."""
DETAILED = 3600.0
"""Seconds of reporting windows in one line: with 512 devices it has 90 kB."""

LEDGER: Ledger[Line] = Ledger(FOLDER, LINE, "energy")


class Walk:
    """Accounts for lines as a whole, and by device."""

    def __init__(self) -> None:
        self.whole, self.devices = account.Walk(), Devices()

    def take(self, line: Line) -> None:
        self.whole.take(line)
        if isinstance(line, Window):
            self.devices.take(line)


class EnergyLedger(CommandLedger[Line, Walk]):
    """The energy of one command. Nothing here raises."""

    begin = Walk

    def __init__(self, run: Storage, energy: Energy, began: float, number: int) -> None:
        """began: when the command did, in seconds since 1970. number: its epoch of the lease."""
        super().__init__(LEDGER, run, number)
        self._steps: Steps | None = None
        """To be merged with those that follow."""
        self._window: Window | None = None
        """The same of windows."""
        began_as = Began(
            at=began,
            number=number,
            before=self.before(),
            pue=energy.pue,
            grid_kg_per_kwh=energy.grid_kg_per_kwh,
        )
        self.note(began_as)

    def note(self, line: Line) -> None:
        match line:
            case Steps():
                self._merge(line)
            case Window():
                self._enter_steps()  # a line of steps lies before the window's end, or behind it
                self._window = merged(self._window, line) if self._window else line
                seconds = (device.seconds for device in self._window.devices.values())
                if max(seconds, default=0.0) >= DETAILED:
                    self._enter_window()
            case _:
                self._enter_steps()
                self._enter_window()
                self.enter(line)

    def catch_up(self) -> None:
        """Write down every step so far, for whoever reads the lines while the run goes on."""
        self._enter_steps()
        self._write()

    def write_detail(self) -> tuple[str, str] | None:
        """Write the detail by device beside the lines; its URI and SHA-256, if anything was measured."""
        self._enter_window()
        detail = _table(self.walked().devices).encode()
        with suppress(OSError):
            if detail:
                self.folder.write(DETAIL, detail)
                uri = self.folder.below(DETAIL).uri
                return uri, hashlib.sha256(detail).hexdigest()
        return None

    def account(self) -> account.Account:
        """Of the run so far, or of this command alone when the earlier ones can not be read."""
        self._enter_steps()
        self._enter_window()
        return self.walked().whole.account()

    def _merge(self, steps: Steps) -> None:
        before = self._steps
        if before and before.last + 1 == steps.first and not steps.before:
            steps = Steps(
                at=steps.at,
                first=before.first,
                seconds=before.seconds + steps.seconds,
                tokens=before.tokens + steps.tokens,
                joules=before.joules + steps.joules,
                data_wait=before.data_wait + steps.data_wait,
                before=before.before,
            )
        else:
            self._enter_steps()
        self._steps = steps
        if sum(steps.seconds) >= MERGED:
            self._enter_steps()

    def _enter_steps(self) -> None:
        if self._steps:
            self.enter(self._steps)
            self._steps = None

    def _enter_window(self) -> None:
        if self._window:
            self.enter(self._window)
            self._window = None


def walk(run: Storage) -> Walk:
    """What accounts for the lines of all commands of a run. Raises as `Ledger.read`."""
    found = Walk()
    for line in read(run):
        found.take(line)
    return found


def read(run: Storage) -> list[Line]:
    """The lines of all commands of a run. Raises as `Ledger.read`."""
    return LEDGER.read(run)


def _table(devices: Devices) -> str:
    """The detail by device; empty when nothing was measured."""
    rows = list(devices.rows())
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
