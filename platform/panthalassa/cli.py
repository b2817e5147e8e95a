"""The command line: one function call a command, and every error that people can mend in one line."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from panthalassa.errors import PanthalassaError

BEGAN = time.time()

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigFile = Annotated[Path, typer.Argument(help="configuration of the run, YAML")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="overrides such as train.steps=50", metavar="KEY=VALUE…")
]
RunFolder = Annotated[
    str, typer.Argument(help="a run's folder or s3:// URI, e.g. runs/laptop", metavar="RUN")
]
Debug = Annotated[
    bool, typer.Option("--debug", help="show tracebacks and the logs of all processes")
]


@app.callback()
def panthalassa() -> None:
    """Elastic training of large language models on Ray."""


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="a configuration (YAML), or a folder of texts")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Turn texts (.txt, .jsonl, .parquet) into a packed, hashed corpus with its tokenizer."""

    def command(console: Console) -> None:
        from panthalassa.config_file import load_preparation
        from panthalassa.corpus.prepare import prepare

        sections = load_preparation(source, overrides or [])
        show = partial(console.print, soft_wrap=True)
        prepare(sections.corpus, show, sections.cluster, debug)

    _run(command, debug)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a model, or go on where the run of that name was. Ctrl-C stops it with a checkpoint."""

    def command(console: Console) -> None:
        from panthalassa.config_file import load
        from panthalassa.train.display import Display, summarize
        from panthalassa.train.run import pretrain

        loaded = load(config, overrides)
        with Display(loaded, console, BEGAN) as display:
            outcome = pretrain(loaded, display.show, debug, BEGAN)
        summarize(outcome, console)

    _run(command, debug)


@app.command()
def stop(run: RunFolder, debug: Debug = False) -> None:
    """Stop a run at the next step boundary, with a checkpoint; its command may run anywhere."""

    def command(console: Console) -> None:
        from panthalassa.storage import open_storage
        from panthalassa.train.stop import request_stop

        request_stop(open_storage(run))
        console.print(f"{run} stops after this step, with a checkpoint", markup=False)

    _run(command, debug)


@app.command()
def audit(run: RunFolder, debug: Debug = False) -> None:
    """Prove from a run's ledger that each sample was trained on exactly once in each epoch."""

    def command(console: Console) -> None:
        from panthalassa.storage import open_storage
        from panthalassa.train.audit import audit_run, explain

        report = audit_run(open_storage(run))
        for line in explain(report):
            console.print(line, soft_wrap=True, markup=False)
        if not report.passed:
            raise typer.Exit(1)

    _run(command, debug)


@app.command()
def goodput(run: RunFolder, debug: Debug = False) -> None:
    """Tell what every second of a run went to so far, restarts and repeated steps included."""

    def command(console: Console) -> None:
        from panthalassa.storage import open_storage
        from panthalassa.train.goodput import account, explain
        from panthalassa.train.goodput_ledger import read

        for name, text in explain(account(read(open_storage(run)))):
            console.print(f"{name:14} {text}", soft_wrap=True, markup=False)

    _run(command, debug)


@app.command()
def report(
    run: RunFolder,
    compare: Annotated[
        str | None,
        typer.Option(help="another run's folder or URI, to stand beside it", metavar="RUN"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="where to write; else report.html in the run's folder")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a run's figures, numbers and configuration as one HTML page that needs no network."""

    def command(console: Console) -> None:
        from panthalassa.report.page import write_report
        from panthalassa.storage import open_storage

        where = write_report(open_storage(run), open_storage(compare) if compare else None, out)
        console.print(where, soft_wrap=True, markup=False)

    _run(command, debug)


def _run(command: Callable[[Console], None], debug: bool) -> None:
    console = Console(highlight=False)
    try:
        command(console)
    except PanthalassaError as error:
        if debug:
            raise
        console.file.flush()
        print(f"panthalassa: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("panthalassa: ended at once; the last checkpoint stands", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
