"""The display of a job: each line of its log once, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator
from io import StringIO

import pytest
from rich.console import Console

from panthalassa.jobs.follow import Log
from panthalassa.train.display import progress_bar

LOG = [f"step {step}/40  loss {8 - step / 10:.4f}" for step in range(2, 41, 2)]
LOG[3:3] = ["checkpoint /runs/small/step-6: [46.8] MB", "the sea 海"]
SENT = [*LOG, "\x1b[33m(raylet)\x1b[0m\ta worker died"]
SHOWN = [*LOG, "(raylet)        a worker died"]


class Cluster:
    """Sends a log from its beginning in pieces, and breaks off where it is told to."""

    def __init__(self, piece: int, *breaks: int) -> None:
        self.text, self.piece, self.breaks = "\n".join(SENT) + "\n", piece, list(breaks)

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
    assert shown(Cluster(piece, *breaks), terminal=False).splitlines() == SHOWN


def test_a_terminal_shows_the_steps_as_the_bar_of_train() -> None:
    text = shown(Cluster(10), terminal=True)
    assert "step 40/40" in text
    assert "loss 4.0000" in text
    assert "\nstep 2/40" not in text
    assert "checkpoint /runs/small/step-6: [46.8] MB" in text


def test_a_narrow_terminal_shows_at_which_step_a_run_is() -> None:
    target = Console(file=(file := StringIO()), width=80)
    bar = progress_bar(target)
    text = "loss 5.9715  lr 6.09e-04  12,806 tokens/s  no power source  checkpoint step 123400"
    bar.add_task(text, total=132_000, completed=123_456)
    target.print(bar.get_renderable())
    (line,) = file.getvalue().splitlines()
    assert line.startswith("step 123456/132000 ")
    assert "12,806 tokens/s" in line
