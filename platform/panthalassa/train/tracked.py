"""What is tracked of a run: the records of an event, under the names that MLflow and reports show."""

import time
from collections.abc import Iterator

from panthalassa.storage import Storage
from panthalassa.stream.ledger import Attempt
from panthalassa.tracking.spool import RANKS, Record, Spool
from panthalassa.train.events import Evaluated, Event, Ready, Saved, Step


def records(event: Event) -> Iterator[Record]:
    """What rank 0 spools of what it posts."""
    match event:
        case Step():
            metrics = {
                "loss": event.loss,
                "grad_norm": event.grad_norm,
                "learning_rate": event.learning_rate,
                "tokens_per_second": event.tokens_per_second,
                "mfu": event.mfu,
                "step_seconds": event.seconds,
                "data_seconds": event.data_seconds,
            }
            if event.joules is not None:
                metrics["joules"] = event.joules
            yield Record("metrics", event.at, event.step, metrics)
        case Evaluated():
            yield Record("metrics", time.time(), event.step, {"held_out_loss": event.loss})
        case Saved():
            seconds = {"checkpoint_seconds": event.seconds, "stall_seconds": event.stall_seconds}
            checkpoint = {"name": "checkpoint", "uri": event.uri, "sha256": event.sha256}
            yield Record("metrics", time.time(), event.step, seconds)
            yield Record("artifact", time.time(), event.step, checkpoint)
        case Ready():
            yield Record("tags", time.time(), event.first_step, {"power": event.power})


def open_spool(run: Storage, attempt: Attempt) -> Spool:
    """The spool of an attempt's rank 0, in which the attempt is tagged."""
    number, at, step = attempt.attempt, attempt.began, attempt.first_step
    sizes = {"dp_size": attempt.dp_size, "tp_size": attempt.tp_size}
    spool = Spool(run.below(RANKS), Record("attempt", at, step, sizes), number)
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    ranks = f"{attempt.dp_size} data-parallel x {attempt.tp_size} tensor-parallel ranks"
    tags = {"attempt": str(number), f"attempt.{number}": f"{began} after step {step}: {ranks}"}
    spool.log(Record("tags", at, step, tags))
    return spool
