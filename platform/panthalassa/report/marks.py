"""What happened when to a run's ranks: from the moments of its time line to points of figures."""

from typing import Literal

from panthalassa.line_ledger import Began, Ended, Lost
from panthalassa.train.goodput import Launched, Steps, Timeline

Kind = Literal["restart", "resize", "command"]


def interruptions(timeline: Timeline) -> list[tuple[Kind, int]]:
    """Each interruption with the step at which the run went on after it: ranks were lost (`restart`),
    ended to go on with more or fewer (`resize`), or another command took over (`command`)."""
    found: list[tuple[Kind, int]] = []
    waiting: list[Kind] = []
    trained = False
    for _, line in timeline.moments:
        match line:
            case Lost():
                waiting.append("resize" if line.planned else "restart")
            case Began() if trained:
                waiting.append("command")
            case Steps():
                found += [(kind, line.first) for kind in dict.fromkeys(waiting)]
                waiting, trained = [], True
    return found


def world_sizes(timeline: Timeline) -> tuple[list[float], list[int]]:
    """The ranks that were asked for, from which second of the run's time on; 0 where there were none."""
    at, workers = [0.0], [0]
    for second, line in timeline.moments:
        match line:
            case Launched():
                count = line.workers
            case Lost() | Ended() | Began():
                count = 0
            case _:
                continue
        at.append(second)
        workers.append(count)
    end = timeline.moments[-1][0] if timeline.moments else 0.0
    return [*at, end], [*workers, workers[-1]]
