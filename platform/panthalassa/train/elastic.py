"""A run on whatever the cluster has: place the ranks, follow them, and place them anew when it changes.

An attempt is one group of ranks, from their launch to their end. The driver counts the places on the
nodes that are there and starts an attempt on as many as the run may have. It ends when the run is
complete or stopped; when a rank or node is lost; and, at a step boundary with a checkpoint, when nodes
join or are about to leave. Then the next begins at the newest checkpoint, on what is there by then.

Ray Train could resize by itself. It does so without asking for a checkpoint, and waits for nodes that
are dead for as long as its own account of them is old (up to 20 s, each try another 15 to 60 s). So
here each attempt is a run of Ray Train's with ranks on nodes that have just answered. What a run lacks
it asks the cluster's autoscaler for, if there is one.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import remove_placement_group

from panthalassa.config import Cluster
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.lease import Lease
from panthalassa.train import placement
from panthalassa.train.board import Launch
from panthalassa.train.checkpoint import newest
from panthalassa.train.checkpointing import mean_time_between_failures
from panthalassa.train.demand import Demand
from panthalassa.train.events import (
    Ended,
    Event,
    Failed,
    Launched,
    Lost,
    Notice,
    Ready,
    Saved,
    Step,
    Waited,
)
from panthalassa.train.goodput import Goodput
from panthalassa.train.trainer import build_trainer
from panthalassa.train.worker import Task

POLL = 0.25
"""Seconds between two looks at the ranks."""
WATCH = 1.0
"""Seconds between two looks at the cluster."""
STEADY = 3.0
"""Seconds for which places must be there before a run stops in order to grow into them."""
SETTLE = 3.0
"""Seconds in which what an ended attempt held comes back, before it counts as taken by others."""
CLOSING = 10.0
"""Seconds for which a command waits at its end for what Ray has still to say of its attempts."""
REMIND = 60.0
"""Seconds between two lines that say what a waiting run waits for."""


class Attempt:
    """One group of ranks, run by a thread of its own; it begins with `launch`."""

    def __init__(self, task: Task, number: int) -> None:
        self.nodes: Sequence[str] = ()
        self.lost: list[str] = []
        """What the ranks said that failed, or why they are given up."""
        self.resizing = False
        """Whether it was asked to end so that another one begins."""
        self.ended: Ended | None = None
        self.failed = False
        self.saved = False
        self.stepping = False
        """Whether it has done a step; before that, Ray may count its places as free still."""
        self._board = task.board
        self._trainer = build_trainer(task, number)
        self._thread = threading.Thread(target=self._fit, daemon=True, name="attempt")
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # whatever it is, this attempt is over
            self.lost.append(_last_line(error))

    def launch(self, launch: Launch) -> None:
        self.nodes = launch.nodes
        ray.get(self._board.begin.remote(launch))

    def wait(self, seconds: float) -> bool:
        """Whether it is still under way after at most so long."""
        self._thread.join(seconds)
        return self._thread.is_alive() and not self.lost

    def join(self) -> None:
        """Wait for the end of the thread, at most CLOSING seconds."""
        self._thread.join(CLOSING)

    def note(self, event: Event) -> None:
        match event:
            case Ended():
                self.ended = event
            case Failed():
                self.failed = True
            case Lost():
                self.lost.append(event.reason)
            case Saved():
                self.saved = True
            case Step():
                self.stepping = True

    @property
    def complete(self) -> bool:
        """Whether it has done the last step of the run."""
        return self.ended is not None and not self.ended.interrupted

    @property
    def reason(self) -> str:
        """Why it was lost: ranks that only missed another one's answer are not the cause."""
        causes = [line for line in self.lost if not _is_echo(line)]
        if causes:
            return causes[0]
        return f"{self.lost[0].partition(':')[0]} lost its connection to another rank"


def _is_echo(line: str) -> bool:
    return any(word in line for word in ("gloo", "NCCL", "Connection reset", "Connection closed"))


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


@dataclass
class Elastic:
    """Runs attempts until the run is complete, stopped, or can not go on."""

    task: Task
    lease: Lease
    take: Callable[[Event], None]
    """Shows and records an event."""
    stopping: threading.Event
    """Set when the run shall stop at the next step boundary."""
    stop_requested: Callable[[], bool]
    """Whether somebody has left the wish to stop in the run's folder."""
    goodput: Callable[[], Goodput]
    """Of the run so far."""
    demand: Demand = field(init=False)
    _launches: int = field(default=0, init=False)
    _next: Attempt | None = field(default=None, init=False)
    """Started ahead, because Ray Train's controller takes seconds to start; it waits for its launch."""
    _attempts: list[Attempt] = field(default_factory=list, init=False)
    """All, the one ahead included."""
    _silent_nodes: tuple[str, ...] = field(default=(), init=False)
    _peak_flops: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config = self.task.config
        self.demand = Demand(config.cluster, config.parallel.tp_size)

    def run(self) -> None:
        """Raises PanthalassaError when the run can not go on; its checkpoints stand."""
        try:
            self._run()
        finally:
            self.demand.withdraw()

    def close(self) -> None:
        """To be called when the board is gone: Ray ends a process in which a thread still asks it
        something after its shutdown."""
        for attempt in self._attempts:
            attempt.join()

    def _run(self) -> None:
        cluster, failures, lost = self.task.config.cluster, 0, False
        while nodes := self._await_places(lost):
            attempt = self._follow(nodes)
            lost = bool(attempt.lost) and not attempt.complete
            if attempt.failed or attempt.complete or not (lost or attempt.resizing):
                return
            self.take(Lost(attempt.reason if lost else "", planned=not lost))
            failures = 0 if attempt.saved else failures
            failures += lost
            if lost and failures > cluster.max_failures:
                raise PanthalassaError(
                    f"the ranks failed more often than cluster.max_failures={cluster.max_failures} "
                    f"allows, at last with: {attempt.reason}. "
                    f"The checkpoints in {self.task.run.uri} stand; --debug shows all."
                )
        self.take(Notice("stopped while no ranks were there"))
        found = newest(self.task.run)
        self.take(Ended(found[1].step if found else 0, interrupted=True))

    def _follow(self, nodes: Sequence[str]) -> Attempt:
        """Launch an attempt on `nodes`, and see to it until it is over."""
        board = self.task.board
        self.take(Launched(len(nodes), len(set(nodes))))
        attempt = self._next_attempt()
        self.demand.withdraw()  # what it holds is for these ranks
        attempt.launch(self._launch(nodes))
        self._launches += 1
        watch = _Watch(self, attempt)
        asked = False
        try:
            while attempt.wait(POLL):
                self._pass_on(attempt)
                watch.look()
                if attempt.stepping and self.task.config.cluster.address != "local":
                    self._next = self._next or self._new_attempt()
                if (attempt.resizing or self._asked_to_stop()) and not asked:
                    asked = True
                    ray.get(board.stop.remote())
            self._pass_on(attempt)
        finally:  # also when this command is ended, or overtaken by another one
            under_way = attempt.lost or attempt.wait(0)
            if under_way and (group := ray.get(board.group.remote())):
                remove_placement_group(group)  # what is left of it ends at once
        return attempt

    def _next_attempt(self) -> Attempt:
        """The one that was started ahead, if it waits still."""
        ahead, self._next = self._next, None
        return ahead if ahead and ahead.wait(0) else self._new_attempt()

    def _new_attempt(self) -> Attempt:
        self._attempts.append(Attempt(self.task, self._launches))
        return self._attempts[-1]

    def _launch(self, nodes: Sequence[str]) -> Launch:
        if self._launches:
            self.lease.advance()
        goodput = self.goodput()
        between = mean_time_between_failures(len(set(nodes)), goodput.restarts, goodput.seconds)
        return Launch(
            tuple(nodes),
            time.time(),
            between,
            self._silent_nodes,
            self._peak_flops,
            self.lease.epoch,
        )

    def _asked_to_stop(self) -> bool:
        self.lease.check()
        if not self.stopping.is_set() and self.stop_requested():
            self.stopping.set()
            self.take(Notice("asked to stop: after this step, with a checkpoint"))
        return self.stopping.is_set()

    def _pass_on(self, attempt: Attempt) -> None:
        for event in ray.get(self.task.board.take.remote()):
            attempt.note(event)
            if isinstance(event, Ready) and event.peak_is_measured:
                self._peak_flops = event.peak_flops / (event.dp_size * event.tp_size)
            resized = isinstance(event, Ended) and event.interrupted and attempt.resizing
            if not isinstance(event, Lost) and not (resized and not self.stopping.is_set()):
                self.take(event)

    def _await_places(self, lost: bool) -> list[str]:
        """The nodes of the next attempt's ranks, as soon as there are enough; none when it is stopped.

        Raises PanthalassaError when there are too few for too long, ConfigError when no node can hold a
        tensor-parallel group.
        """
        began = reminded = time.monotonic()
        reminded -= REMIND
        cluster, tp_size = self.task.config.cluster, self.task.config.parallel.tp_size
        least = max(cluster.min_workers or cluster.workers, tp_size)
        try:
            while not self._asked_to_stop():
                waited = time.monotonic() - began
                held = self.demand.held()  # first, so that no place counts twice
                nodes = placement.survey()
                self._note_silent([node.id for node in nodes if node.silent])
                most = placement.plan(placement.whole(nodes, cluster), tp_size, cluster.workers)
                free = placement.free(nodes, cluster, held)
                found = placement.plan(free, tp_size, cluster.workers)
                if len(found) >= least and (len(found) == len(most) or waited > SETTLE):
                    return found
                if waited > SETTLE:
                    self.ask(nodes)
                if not most and not lost:
                    self._refuse_large_groups(nodes)
                if waited > cluster.wait_seconds:
                    raise PanthalassaError(
                        f"{_missing(len(found), least, cluster)} for {waited:.0f} s "
                        "(cluster.wait_seconds). The checkpoints stand; the same command goes on."
                    )
                if waited > SETTLE and time.monotonic() > reminded + REMIND:
                    reminded = time.monotonic()
                    self.take(Notice(f"waiting for nodes: {_missing(len(found), least, cluster)}"))
                time.sleep(min(WATCH, 0.1 + waited / 4))
            return []
        finally:
            self.take(Waited(time.monotonic() - began))

    def ask(self, nodes: Sequence[placement.Node], size: int = 0) -> None:
        """Have the autoscaler asked for what a run on `size` ranks lacks."""
        if self.demand.ask(nodes, size):
            workers = self.task.config.cluster.workers
            self.take(Notice(f"asking the autoscaler for room for {workers} ranks, not {size}"))

    def _note_silent(self, nodes: Sequence[str]) -> None:
        for node in set(nodes) - set(self._silent_nodes):
            self.take(Notice(f"node {node} does not answer: nothing is started there"))
        self._silent_nodes = tuple(nodes)

    def _refuse_large_groups(self, nodes: Sequence[placement.Node]) -> None:
        cluster, tp_size = self.task.config.cluster, self.task.config.parallel.tp_size
        most = max(placement.whole(nodes, cluster).values(), default=0)
        if 0 < most < tp_size and not any(node.scaled for node in nodes):
            raise ConfigError(
                f"parallel.tp_size={tp_size} needs that many ranks on one node, and no node of this "
                f"cluster holds more than {most} of {placement.need(cluster)}. Lower it, or "
                "set cluster.address to a cluster with larger nodes."
            )


def _missing(found: int, least: int, cluster: Cluster) -> str:
    key = "min_workers" if cluster.min_workers else "workers"
    return (
        f"{found} of at least {least} ranks have a place (cluster.{key}; a rank needs "
        f"{placement.need(cluster)}, and a tensor-parallel group one node)"
    )


class _Watch:
    """Looks at the cluster now and then while an attempt runs, and says when to resize it."""

    def __init__(self, elastic: Elastic, attempt: Attempt) -> None:
        self._elastic, self._attempt = elastic, attempt
        self._looked = time.monotonic()
        self._room_since: float | None = None

    def look(self) -> None:
        now = time.monotonic()
        if now < self._looked + WATCH or self._attempt.resizing:
            return
        self._looked = now
        ours = set(self._attempt.nodes)
        nodes = {node.id: node for node in placement.survey(ours)}
        if dead := ours - {node.id for node in nodes.values() if not node.refuses}:
            self._attempt.lost.append(f"{len(dead)} of {len(ours)} nodes died")
        elif leaving := {node for node in ours if nodes[node].leaving}:
            self._resize(f"{len(leaving)} of {len(ours)} nodes are being drained")
        elif self._attempt.stepping:
            self._grow(now, list(nodes.values()))

    def _grow(self, now: float, nodes: Sequence[placement.Node]) -> None:
        """Resize when there has been room for more for some time, also on a closer look."""
        size = len(self._attempt.nodes)
        held = self._elastic.demand.held()
        if self._room(nodes, held) <= size:
            self._room_since = None
            self._elastic.ask(nodes, size)
        elif self._room_since is None:
            self._room_since = now
        elif now > self._room_since + STEADY:
            self._room_since = None
            if (room := self._room(placement.survey(), held)) > size:
                self._resize(f"there is room for {room} ranks instead of {size}")

    def _room(self, nodes: Iterable[placement.Node], held: Sequence[str]) -> int:
        config = self._elastic.task.config
        found = placement.free(nodes, config.cluster, [*self._attempt.nodes, *held])
        return len(placement.plan(found, config.parallel.tp_size, config.cluster.workers))

    def _resize(self, why: str) -> None:
        self._attempt.resizing = True
        self._elastic.take(
            Notice(f"{why}: a checkpoint after this step, then on with what is there")
        )
