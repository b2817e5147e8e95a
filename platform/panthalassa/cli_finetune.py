"""`panthalassa finetune`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from panthalassa.terminal import Debug, Overrides, run_command

BEGAN = time.time()


def finetune(
    config: Annotated[Path, typer.Argument(help="configuration of the run, YAML")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Train a model on answers or preferences, or go on where the run of that name was."""

    def command(console: Console) -> None:
        from panthalassa.evaluate.beside import beside
        from panthalassa.finetune.config import load
        from panthalassa.finetune.run import finetune
        from panthalassa.train.display import Display, summarize

        loaded = load(config, overrides)
        with Display(loaded, console, BEGAN) as display:
            outcome = finetune(loaded, beside(loaded, display.show), debug, BEGAN)
        summarize(outcome, console)

    run_command(command, debug)
