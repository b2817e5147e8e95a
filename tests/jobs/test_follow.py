"""The display of a job: each line of its log once, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator
from io import StringIO

import pytest
from rich.console import Console

from panthalassa.jobs.follow import Log

LOG = [f"step {step}/40  loss {8 - step / 10:.4f}" for step in range(2, 41, 2)]
LOG[3:3] = ["checkpoint /runs/small/step-6: [46.8] MB", "the sea 海"]


class Cluster:
    """Sends a log from its beginning in pieces, and breaks off where it is told to."""

    def __init__(self, piece: int, *breaks: int) -> None:
        self.text, self.piece, self.breaks = "\n".join(LOG) + "\n", piece, list(breaks)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else len(self.text)
        for at in range(0, end, self.piece):
            yield self.text[at : min(at + self.piece, end)]


def shown(cluster: Cluster, terminal: bool) -> str:
    console = Console(file=StringIO(), width=200, highlight=False, force_terminal=terminal)
    with Log(console) as log:
        for _ in range(len(cluster.breaks) + 1):
            asyncio.run(log.follow(cluster, "job"))  # type: ignore[arg-type]
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("breaks", [(), (1,), (100, 100, 37), (333, 334, 0)])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_a_log_is_shown_once_however_often_the_connection_breaks(
    piece: int, breaks: tuple[int, ...]
) -> None:
    assert shown(Cluster(piece, *breaks), terminal=False).splitlines() == LOG


def test_a_terminal_shows_the_steps_as_the_bar_of_train() -> None:
    text = shown(Cluster(10), terminal=True)
    assert "step 40/40" in text
    assert "loss 4.0000" in text
    assert "\nstep 2/40" not in text
    assert "checkpoint /runs/small/step-6: [46.8] MB" in text
