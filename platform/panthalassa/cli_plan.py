"""`panthalassa plan`: what training on a cluster will take, and whether claims of it agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.terminal import Debug, Overrides, run_command, show_rows

if TYPE_CHECKING:
    from panthalassa.planner.memory import Progress as Tell
    from panthalassa.planner.plan import Plan

DEFAULT_GPU = "a100-80gb"
CHECK = "check"


def plan(
    config: Annotated[str, typer.Argument(help="a configuration (YAML), or `check` for --claim")],
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="how many; else cluster.workers")] = None,
    gpu: Annotated[str | None, typer.Option(help=f"their name; {DEFAULT_GPU} if not given")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="to train on, such as 1.1T; else train.steps says")
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(help="a run whose steps tell the speed, not published ones", metavar="RUN"),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(help="an assumption of your own, such as pue=1.2", metavar="NAME=VALUE"),
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(help="with `check`: such as days=14", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    html: Annotated[
        Path | None, typer.Option(help="write a page with charts, too", metavar="FILE")
    ] = None,
    debug: Debug = False,
) -> None:
    """Tell memory, speed, energy, cost and days before a GPU is taken; or check claims of a run."""

    def command(console: Console) -> None:
        if config == CHECK:
            if overrides or gpus or gpu or tokens or from_run or assume or html:
                raise ConfigError("plan check takes claims alone, such as --claim gpus=512")
            _check(console, claim or [], as_json)
            return
        if claim:
            raise ConfigError(
                f"--claim {claim[0]}: claims are checked by `panthalassa plan {CHECK}`"
            )
        if html:
            from panthalassa.report.plan import check_file, write_page

            check_file(html)
        found = _plan(config, overrides, gpus, gpu, tokens, from_run, assume or [])
        if html:
            with _tracing() as tell:
                write_page(found, Path(config).stem, html, tell)
        if as_json:
            from panthalassa.planner.telling import as_json as encoded

            print(encoded(found))
            return
        _show(console, found)

    run_command(command, debug)


def _plan(
    path: str,
    overrides: list[str] | None,
    gpus: int | None,
    gpu: str | None,
    tokens: str | None,
    from_run: str | None,
    assume: list[str],
) -> "Plan":
    from panthalassa.config_file import load
    from panthalassa.planner import hardware, own_run
    from panthalassa.planner.assume import Assumed
    from panthalassa.planner.plan import make_plan
    from panthalassa.planner.quantities import read_claim
    from panthalassa.run_config import run_at

    config = load(path, overrides)
    try:
        number = None if tokens is None else read_claim(f"tokens={tokens}").values["tokens"]
    except PanthalassaError as error:
        raise ConfigError(f"--tokens {tokens}: {error}") from error
    many = config.cluster.workers if gpus is None else gpus
    if from_run is None:
        if gpu == "cpu":
            raise ConfigError("--gpu cpu: train some steps on it, and tell their --from-run RUN")
        assumed = Assumed().changed(assume)
        place = hardware.cluster(hardware.gpu(DEFAULT_GPU if gpu is None else gpu), many)
        with _tracing() as tell:
            return make_plan(config, place, number, assumed, progress=tell)
    own = own_run.learn(run_at(from_run), config, gpu)
    assumed = Assumed(power=own.fit.assumptions).changed(assume)
    place = own_run.place(own.gpu, many)
    with _tracing() as tell:
        return make_plan(config, place, number, assumed, own.fit.factors, own.told, tell)


def _show(console: Console, plan: "Plan") -> None:
    from panthalassa.planner.telling import RANKING, ranking_rows, told

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in RANKING:
        table.add_column(title, no_wrap=title != RANKING[-1])
    for row in ranking_rows(plan):
        table.add_row(*row)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    rows = list(told(plan))
    show_rows(console, rows, max(len(name) for name, _ in rows))


@contextmanager
def _tracing() -> "Iterator[Tell]":
    """Tells on standard error how far the traces are, once there are any to be made."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tracing", total=None, visible=False)
        began = False

        def tell(done: int, all: int) -> None:
            nonlocal began
            if not began:
                console.print(
                    f"tracing {all} small models, which are kept: some minutes, the first time",
                    soft_wrap=True,
                )
            began = True
            bar.update(task, completed=done, total=all, visible=True)

        yield tell


def _check(console: Console, claims: list[str], as_json: bool) -> None:
    import json

    from panthalassa.planner.claims import check

    found = check(claims)
    if as_json:
        data = {
            "consistent": found.consistent,
            "contradictions": [str(one) for one in found.contradictions],
            "remedies": [str(one) for one in found.remedies],
            "follows": {name: between.told(name) for name, between in found.follows.items()},
        }
        print(json.dumps(data, indent=1))
    else:
        rows = [("contradiction", str(one)) for one in found.contradictions]
        rows += [("change", str(one)) for one in found.remedies]
        show_rows(console, rows or [("the claims agree", "")])
        show_rows(console, (("it follows", f"{k} = {b.told(k)}") for k, b in found.follows.items()))
    raise typer.Exit(int(not found.consistent))
