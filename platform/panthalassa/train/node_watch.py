"""Tells the driver how busy each node is, from the first of the ranks that it holds."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed as dist

from panthalassa.tracking import node
from panthalassa.train.agreement import everywhere
from panthalassa.train.events import NodeLoad

FIRST, EVERY = 1.0, 10.0
"""Seconds to the first look at a node, and from there between two."""


@contextmanager
def watching_node(board: Any) -> Iterator[None]:
    """Leave the load of this node on the board now and then, as long as the block lasts.

    Every rank calls it.
    """
    ended, name = threading.Event(), socket.gethostname()
    if everywhere([name]).index(name) != dist.get_rank():
        yield
        return

    def watch() -> None:
        hardware = node.hardware()
        node.load()  # what the next one tells begins here
        pause = FIRST
        while not ended.wait(pause):
            board.post.remote([NodeLoad(name, hardware, node.load())])
            pause = EVERY

    thread = threading.Thread(target=watch, daemon=True, name="node")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
