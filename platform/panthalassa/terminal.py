"""What all commands share: how one runs in a terminal, and how it tells what people can mend.

A command is a function of a console. A PanthalassaError of it becomes one message and exit code 1.
"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer
from rich.console import Console

from panthalassa.errors import PanthalassaError

Overrides = Annotated[
    list[str] | None, typer.Argument(help="overrides such as train.steps=50", metavar="KEY=VALUE…")
]
Debug = Annotated[
    bool, typer.Option("--debug", help="show tracebacks and the logs of all processes")
]

MANY_PROCESSES = "worker processes have been started on node"
"""Of a warning of Ray's; those of a sweep's trials are meant to be many."""


def show_rows(console: Console, rows: Iterable[tuple[str, str]], width: int = 14) -> None:
    """Print names, for which there are `width` characters, and what is told of them in two columns."""
    for name, text in rows:
        console.print(f"{name:{width}} {text}", soft_wrap=True, markup=False)


def run_command(command: Callable[[Console], object], debug: bool) -> None:
    """Run it; with `debug` errors keep their tracebacks. Raises typer.Exit."""
    console = Console(highlight=False)
    if not debug:  # Ray, which is not imported yet, shows no line that matches
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", MANY_PROCESSES)
    try:
        command(console)
    except PanthalassaError as error:
        if debug:
            raise
        console.file.flush()
        print(f"panthalassa: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("panthalassa: ended at once; what is written stands", file=sys.stderr)
        raise typer.Exit(130) from None
