"""A training run as the driver sees it: check everything, start the ranks, follow them, sum up.

Whatever can be refused is refused before Ray starts. While the ranks train, the driver takes their
events from the board, shows them and hands them to tracking. A first Ctrl-C (or SIGTERM) asks the
ranks to stop at a step boundary, with a checkpoint; a second one ends the run at once.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import psutil
import ray
from ray.exceptions import RayActorError, RayError

from panthalassa.cluster import connected
from panthalassa.config import Config
from panthalassa.corpus.manifest import Manifest
from panthalassa.energy.account import Account
from panthalassa.energy.ledger import EnergyLedger
from panthalassa.errors import PanthalassaError
from panthalassa.lease import Lease
from panthalassa.run_config import folder_of, keep
from panthalassa.storage import Storage, open_storage
from panthalassa.tracking.prometheus import Gauges
from panthalassa.tracking.tracker import Tracker
from panthalassa.train import board as boards
from panthalassa.train.check import check
from panthalassa.train.elastic import Elastic
from panthalassa.train.energy import entry
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
from panthalassa.train.goodput import Goodput, goodput_metrics
from panthalassa.train.goodput_ledger import GoodputLedger
from panthalassa.train.objective import NextToken, Objective
from panthalassa.train.scaling import still_there
from panthalassa.train.stop import StopRequests
from panthalassa.train.worker import Task

RECENT = 1000
"""Steps that are remembered one by one, at least."""
PATIENCE = 120.0
"""Seconds for which a run outlives an outage of the storage that its folder is in."""
ANSWER = 10.0
"""Seconds in which the board says, at the end of a command, which controllers there were."""


@dataclass
class Sums:
    """Of steps, for the summary."""

    seconds: float = 0.0
    positions: float = 0.0
    mfu: float = 0.0
    """Times seconds."""
    data_seconds: float = 0.0
    joules: float = 0.0
    metered: int = 0
    """Steps that have joules."""

    def add(self, step: Step) -> None:
        self.seconds += step.seconds
        self.positions += step.tokens_per_second * step.seconds
        self.mfu += step.mfu * step.seconds
        self.data_seconds += step.data_seconds
        self.joules += step.joules or 0.0
        self.metered += step.joules is not None


@dataclass
class History:
    """What is remembered of a run's events, for the summary; of a long run as much as of a short one."""

    ready: Ready | None = None
    steps: list[Step] = field(default_factory=list)
    """The newest, RECENT or twice as many."""
    sums: Sums = field(default_factory=Sums)
    """Of all steps of this command but the first, which warms up; of that one as long as it is alone."""
    _alone: bool = field(default=False, init=False)
    evaluations: list[Evaluated] = field(default_factory=list)
    saved: Saved | None = None
    texts: list[Generated] = field(default_factory=list)
    ended: Ended | None = None
    failed: str | None = None

    def add(self, event: Event) -> None:
        match event:
            case Ready():
                self.ready = event
                self.evaluations = list(event.evaluations)
            case Step():
                self._step(event)
            case Evaluated():
                self.evaluations.append(event)
            case Saved():
                self.saved = event
            case Generated():
                self.texts.append(event)
            case Ended():
                self.ended = event
            case Failed():
                self.failed = self.failed or event.message
            case Started() | Spent() | Notice() | Waited() | Launched() | Lost():
                pass
            case Metered() | NodeLoad():
                pass

    def _step(self, step: Step) -> None:
        if self._alone:
            self.sums = Sums()
        self._alone = not self.steps
        self.sums.add(step)
        self.steps.append(step)
        if len(self.steps) >= 2 * RECENT:
            del self.steps[:-RECENT]

    @property
    def status(self) -> str:
        """How the run stands, in MLflow's words."""
        if self.ended is None:
            return "FAILED"
        return "KILLED" if self.ended.interrupted else "FINISHED"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    config: Config
    manifest: Manifest
    history: History
    goodput: Goodput
    """Of the run so far, earlier commands included."""
    seconds: float
    tracking_uri: str
    tracking_problem: str | None
    energy: Account | None = None
    """The same of its energy; None when nothing was measured."""


@dataclass(frozen=True)
class Beginning:
    """In what a fine-tuning differs from a training from scratch, which this is."""

    objective: Objective = field(default_factory=NextToken)
    place_weights: Callable[[Storage], None] = lambda run: None
    """Called with the run's folder, which is this command's own, before Ray starts: puts there the
    weights that the run begins with."""


def pretrain(
    config: Config,
    show: Callable[[Event], None],
    debug: bool = False,
    began: float | None = None,
    stopping: threading.Event | None = None,
    beginning: Beginning = Beginning(),
) -> Outcome:
    """Train until the configured step, or until asked to stop. `show` gets every event as it comes.

    began: when the program began, in seconds since 1970, for the time to the first step.
    stopping: set by whoever wants the run to stop at a step boundary, with a checkpoint.
    beginning: what is minimised, and from which weights on.
    Raises PanthalassaError when a user has to mend something first, or another command has the run.
    """
    began = began or time.time()
    manifest = check(config)
    run = replace(folder_of(config), patience=PATIENCE)
    with Lease(run, lambda text: show(Notice(text))) as lease:
        return _command(
            config,
            manifest,
            run,
            lease,
            show,
            debug,
            began,
            stopping or threading.Event(),
            beginning,
        )


def _command(
    config: Config,
    manifest: Manifest,
    run: Storage,
    lease: Lease,
    show: Callable[[Event], None],
    debug: bool,
    began: float,
    stopping: threading.Event,
    beginning: Beginning,
) -> Outcome:
    """What `pretrain` does with the lease of the run."""
    changed = keep(config, run)
    beginning.place_weights(run)
    history = History()
    parts = [Started("program", time.time() - began)]
    before_ray = time.time()
    with (
        GoodputLedger(run, began, lease.command) as ledger,
        EnergyLedger(run, config.energy, began, lease.command) as energy,
        connected(config.cluster, debug) as ending,
    ):
        parts.append(Started("Ray", time.time() - before_ray))
        tracker = Tracker(config, run, manifest.fingerprint, lease.command)
        publish = _Publisher(tracker, Gauges(config.run.name))

        def take(event: Event) -> None:
            history.add(event)
            ledger.add(event)
            if line := entry(event):
                energy.note(line)
            if isinstance(event, Evaluated):
                energy.catch_up()  # a sweep judges by what a run took until here
            show(event)
            publish(event, history, ledger.goodput)

        try:
            for part in parts:
                take(part)
            if changed:
                take(Notice(f"other than in this run's last command: {', '.join(changed)}"))
            objective = beginning.objective
            _fit(config, manifest, run, lease, take, ledger.goodput, stopping, objective, ending)
        finally:
            if history.steps:
                tracker.log(history.steps[-1].step, goodput_metrics(ledger.goodput()))
            with suppress(PanthalassaError):
                lease.fence.check()  # the file is the run's, whichever command it is
                if detail := energy.write_detail():
                    tracker.artifact("energy.devices", *detail)
            tracker.close(history.status)
    if history.failed:
        raise PanthalassaError(history.failed)
    spent = energy.account()
    return Outcome(
        config=config,
        manifest=manifest,
        history=history,
        goodput=ledger.goodput(),
        seconds=time.time() - began,
        tracking_uri=tracker.uri,
        tracking_problem=tracker.problem,
        energy=spent if spent.source else None,
    )


@dataclass(frozen=True)
class _Publisher:
    """Hands to Prometheus and to MLflow what the driver knows; the ranks spool the rest themselves."""

    tracker: Tracker
    gauges: Gauges

    def __call__(self, event: Event, history: History, goodput: Callable[[], Goodput]) -> None:
        match event:
            case Step():
                self.gauges.set(
                    step=event.step,
                    loss=event.loss,
                    step_seconds=event.seconds,
                    data_wait_seconds=event.data_seconds,
                    tokens_per_second=event.tokens_per_second,
                    mfu_ratio=event.mfu,
                    joules_per_iteration=event.joules,
                )
            case Saved():
                self.gauges.set(
                    checkpoint_timestamp_seconds=time.time(), goodput_ratio=goodput().fraction
                )
            case NodeLoad():
                step = history.steps[-1].step if history.steps else 0
                self.tracker.node(step, event.node, event.hardware, event.load)


def _fit(
    config: Config,
    manifest: Manifest,
    run: Storage,
    lease: Lease,
    take: Callable[[Event], None],
    goodput: Callable[[], Goodput],
    stopping: threading.Event,
    objective: Objective,
    ending: list[psutil.Process],
) -> None:
    """Run the attempts here, where signals arrive, until the run is complete or stopped. Controllers
    that are left join what is `ending`."""
    board = boards.create()
    corpus = open_storage(config.corpus.directory)
    task = Task(config, manifest, run, corpus, objective, board)
    requests = StopRequests(run, lambda: lease.fence.check())
    elastic = Elastic(task, lease, take, stopping, requests, goodput)
    try:
        with on_signals(stopping, take):
            elastic.run()
    except RayActorError as error:
        raise PanthalassaError(
            "the process that carries the ranks' messages ended (killed, or out of memory on this "
            "machine). The checkpoints stand; the same command goes on."
        ) from error
    finally:
        with suppress(RayError):
            ending += still_there(ray.get(board.controllers.remote(), timeout=ANSWER))
        ray.kill(board)  # what waits for another launch ends with it
        elastic.close()


@contextmanager
def on_signals(stopping: threading.Event, take: Callable[[Event], None]) -> Iterator[None]:
    """Turn a first SIGINT or SIGTERM into `stopping`, a second into KeyboardInterrupt."""
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stopping.set()
        take(Notice("stopping after this step, with a checkpoint (once more to end at once)"))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
