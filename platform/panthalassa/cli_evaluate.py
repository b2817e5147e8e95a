"""`panthalassa evaluate CONFIG`: ask a model, and compare two that were asked."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from panthalassa.terminal import Debug, Overrides, run_command


class _RunByDefault(TyperGroup):
    """What is no command is the configuration that `run` takes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0].startswith("-"))
        return super().parse_args(ctx, args if named or not args else ["run", *args])


evaluate = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Ask a model the tasks of a configuration (CONFIG [KEY=VALUE…]), or compare two models.",
)

WIDTH = 120
"""Of tables that are not told to a terminal."""
Folder = Annotated[str, typer.Argument(help="the output of an evaluation: a folder or s3:// URI")]


@evaluate.command()
def run(
    config: Annotated[Path, typer.Argument(help="configuration of the evaluation, YAML")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Ask a model all tasks, or go on where the evaluation of that output was."""

    def command(console: Console) -> None:
        from panthalassa.evaluate.config import load
        from panthalassa.evaluate.run import evaluate
        from panthalassa.evaluate.telling import tables

        loaded = load(config, overrides or [])
        tell = partial(console.print, soft_wrap=True, markup=False)
        results = evaluate(loaded, tell, debug)
        for headings, rows in tables(results):
            show_table(console, headings, rows)
        tell(f"results of {results.model.name} in {loaded.output}")

    run_command(command, debug)


@evaluate.command()
def compare(a: Folder, b: Folder, debug: Debug = False) -> None:
    """What the second model has more than the first, with intervals, over the items that both have."""

    def command(console: Console) -> None:
        from panthalassa.evaluate.compare import compare, left_out, settings_that_differ
        from panthalassa.storage import open_storage

        first, second = open_storage(a), open_storage(b)
        found = compare(first, second)
        show_table(
            console,
            ("task", "metric", "difference", "p"),
            ((each.task, each.metric, str(each), f"{each.p:.3g}") for each in found),
        )
        for line in (*left_out(found), *settings_that_differ(first, second)):
            console.print(line, soft_wrap=True, markup=False)

    run_command(command, debug)


def show_table(console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, or nothing where there are no rows; what is too wide for its column is folded."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = WIDTH
    if table.row_count:
        console.print(table)
