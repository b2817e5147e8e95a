"""The board between a run's driver and its ranks: launches and the wish to stop in, events out.

A small Ray actor, because ranks and driver may be on different machines. Rank 0 talks to it from a
thread, so that a step never waits for it.
"""

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from panthalassa.tracking.spool import Spool
from panthalassa.train.events import Event, Failed, Lost, Notice
from panthalassa.train.tracked import records

INTERVAL = 1.0
"""Seconds between two exchanges."""


Controller = tuple[int, float]
"""The process of one of Ray Train's controllers: its id, and when it was created, as ids come again."""


@dataclass(frozen=True)
class Launch:
    """What is known of an attempt only when it begins."""

    nodes: tuple[str, ...]
    """Ray's id of the node of each rank."""
    at: float
    """When the driver asked for the ranks, in seconds since 1970."""
    between_failures: float
    """Mean seconds between two failures of the run."""
    silent_nodes: tuple[str, ...] = ()
    """Nodes that are dead, and Ray does not know yet: nothing is read there."""
    peak_flops: float | None = None
    """FLOP/s of a rank, as an earlier attempt measured it."""
    epoch: int = 1
    """Of the run's lease: the number of this attempt."""


class Board:
    """The actor's state; `create` starts it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stopping = False
        self._group: Any = None
        self._launches: list[Launch] = []
        self._launched = asyncio.Condition()
        self._controllers: list[Controller] = []

    async def begin(self, launch: Launch) -> None:
        """The next attempt begins; what is still said of the loss of the last one is not its own."""
        self._stopping, self._group = False, None
        self._events = [event for event in self._events if not isinstance(event, Lost)]
        async with self._launched:
            self._launches.append(launch)
            self._launched.notify_all()

    async def launch(self, attempt: int, controller: Controller | None = None) -> Launch:
        """The launch of an attempt, counted from 0, as soon as it begins; its controller tells its
        process."""
        if controller is not None:
            self._controllers.append(controller)
        async with self._launched:
            await self._launched.wait_for(lambda: attempt < len(self._launches))
        return self._launches[attempt]

    def controllers(self) -> list[Controller]:
        """The processes that control attempts, or did; on the node of the command, as this is."""
        return self._controllers

    def sit(self, group: Any) -> None:
        """Note the placement group that the ranks of this attempt sit in."""
        self._group = group

    def group(self) -> Any:
        """The placement group of this attempt; None as long as no rank has started."""
        return self._group

    def post(self, events: list[Event], attempt: int | None = None) -> bool:
        """Leave events; returns whether the run shall stop.

        Ranks that outlive their attempt shall stop, and what they say does not count any more.
        """
        if attempt is not None and attempt < len(self._launches) - 1:
            return True
        self._events += events
        return self._stopping

    def take(self) -> list[Event]:
        """Take all events that are there."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        self._stopping = True


def create() -> Any:
    """Start a board on this node; returns the actor's handle."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


class Poster:
    """A rank's end: posts in the background, and knows whether the run shall stop.

    Only rank 0 `speaks`; the others are heard when they fail. What it posts is spooled, too, from when
    there is a `spool`.
    """

    spool: Spool | None = None

    def __init__(self, board: Any, speaks: bool, attempt: int) -> None:
        """attempt: counted from 0, as the board does."""
        self.stopping = False
        self._board, self._attempt = board, attempt
        self._speaks = speaks
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._exchange_until_closed, daemon=True)
        if speaks:
            self._thread.start()

    def post(self, event: Event) -> None:
        """Have the event sent within the interval."""
        if self._speaks:
            self._events.put(event)
        if self.spool:
            for record in records(event):
                self.spool.log(record)

    def fail(self, event: Failed | Lost | Notice) -> None:
        """Send at once why this rank ends, from any rank."""
        self._events.put(event)
        self._send()

    def flush(self) -> None:
        """Return when everything that was posted is on the board and in the spool, which outlive this
        process."""
        if self._speaks:
            self._send()
        if self.spool:
            self.spool.flush()

    def _send(self) -> None:
        with self._lock:
            events = [self._events.get() for _ in range(self._events.qsize())]
            try:
                self.stopping = ray.get(self._board.post.remote(events, self._attempt))
            except ActorDiedError:  # nobody listens any more: end with a checkpoint
                self.stopping = True

    def close(self) -> None:
        """Send what is left."""
        if self._speaks:
            self._closing.set()
            self._thread.join()
            if self.spool:
                self.spool.close()
            self._send()

    def _exchange_until_closed(self) -> None:
        while not self._closing.wait(INTERVAL):
            self._send()
