"""The command line: one function call a command, and every error that people can mend in one line."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from panthalassa.cli_corpus import corpus
from panthalassa.cli_finetune import finetune
from panthalassa.cli_generate import generate
from panthalassa.cli_jobs import jobs, submit
from panthalassa.cli_model import model
from panthalassa.cli_plan import plan
from panthalassa.errors import PanthalassaError
from panthalassa.terminal import Debug, Overrides
from panthalassa.terminal import run_command as _run
from panthalassa.terminal import show_rows as _table

BEGAN = time.time()

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(corpus, name="corpus")
app.add_typer(model)
app.command()(plan)
app.command()(submit)
app.command()(finetune)
app.command()(generate)
tracking = typer.Typer(no_args_is_help=True, help="What MLflow has of a run.")
app.add_typer(tracking, name="track")
energy = typer.Typer(no_args_is_help=True)
app.add_typer(energy, name="energy", help="What a run's energy went to, and how two runs compare.")
app.add_typer(jobs, name="jobs", help="What `panthalassa submit` has sent to a cluster.")

ConfigFile = Annotated[Path, typer.Argument(help="configuration of the run, YAML")]
RunFolder = Annotated[
    str, typer.Argument(help="a run's folder or s3:// URI, e.g. runs/laptop", metavar="RUN")
]
Metric = Literal["j_per_iteration", "j_per_token"]


@app.callback()
def panthalassa() -> None:
    """Elastic training of large language models on Ray."""


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="a configuration (YAML), or a folder of texts, local or s3://bucket/prefix"
        ),
    ],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Turn texts, tables, dumps and crawls into a packed, hashed corpus with its tokenizer."""

    def command(console: Console) -> None:
        from panthalassa.config_file import load_preparation
        from panthalassa.corpus.prepare import prepare
        from panthalassa.report.corpus import find_page
        from panthalassa.storage import open_storage

        sections = load_preparation(source, overrides or [])
        show = partial(console.print, soft_wrap=True, markup=False)
        prepare(sections.corpus, show, sections.cluster, debug, sections.vision)
        show(find_page(open_storage(sections.corpus.directory)))

    _run(command, debug)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a model, or go on where the run of that name was. Ctrl-C stops it with a checkpoint."""

    def command(console: Console) -> None:
        from panthalassa.config_file import load
        from panthalassa.evaluate.beside import beside
        from panthalassa.train.display import Display, summarize
        from panthalassa.train.run import pretrain

        loaded = load(config, overrides)
        with Display(loaded, console, BEGAN) as display:
            outcome = pretrain(loaded, beside(loaded, display.show), debug, BEGAN)
        summarize(outcome, console)

    _run(command, debug)


@app.command()
def sweep(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Search for the best configuration with many runs, or go on where the sweep of that name was."""

    _run(lambda console: _sweep(console, config, overrides or [], debug), debug)


def _sweep(console: Console, config: Path, overrides: list[str], debug: bool) -> str:
    """Run a sweep, and tell what it came to; returns its folder."""
    from panthalassa.run_config import folder_of
    from panthalassa.sweep.run import explain, sweep
    from panthalassa.sweep.space import load

    plan = load(config, overrides)
    outcome = sweep(plan, partial(console.print, soft_wrap=True, markup=False), debug)
    _table(console, explain(outcome))
    if outcome.failed:
        raise PanthalassaError(outcome.failed)
    if outcome.interrupted:
        raise typer.Exit
    return folder_of(plan.config).uri


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
        from panthalassa.run_config import run_at
        from panthalassa.train.audit import audit_run, explain

        report = audit_run(run_at(run))
        for line in explain(report):
            console.print(line, soft_wrap=True, markup=False)
        if not report.passed:
            raise typer.Exit(1)

    _run(command, debug)


@app.command()
def goodput(run: RunFolder, debug: Debug = False) -> None:
    """Tell what every second of a run went to so far, restarts and repeated steps included."""

    def command(console: Console) -> None:
        from panthalassa.run_config import run_at
        from panthalassa.train.goodput import account, explain
        from panthalassa.train.goodput_ledger import read

        _table(console, explain(account(read(run_at(run)))))

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
        from panthalassa.run_config import run_at

        where = write_report(run_at(run), run_at(compare) if compare else None, out)
        console.print(where, soft_wrap=True, markup=False)

    _run(command, debug)


@app.command()
def scaling(
    sweep: Annotated[
        str,
        typer.Argument(
            help="a sweep's folder or s3:// URI; or its configuration (YAML), to run it first",
            metavar="SWEEP",
        ),
    ],
    gpus: Annotated[int, typer.Option(help="of the cluster that is asked about")] = 512,
    gpu: Annotated[str, typer.Option(help="their name")] = "A100",
    days: Annotated[float, typer.Option(help="for which they train")] = 14.0,
    mfu: Annotated[float, typer.Option(help="share of their peak that trains")] = 0.43,
    debug: Debug = False,
) -> None:
    """Fit a loss law L(N, D) to a sweep over sizes and tokens; tell the best size for a cluster."""

    def command(console: Console) -> None:
        from panthalassa.storage import open_storage
        from panthalassa.sweep.ladder import Question, answer, explain, study
        from panthalassa.sweep.page import write_page
        from panthalassa.sweep.results import trials

        is_config = Path(sweep).suffix in (".yaml", ".yml")
        folder = open_storage(_sweep(console, Path(sweep), [], debug) if is_config else sweep)
        found = trials(folder)
        ladder = study(folder, found)
        said = list(answer(Question(gpus, gpu, days, mfu), ladder))
        _table(console, [*explain(ladder), *said])
        where = write_page(folder, found, ladder, said)
        console.print(where, soft_wrap=True, markup=False)

    _run(command, debug)


@tracking.command()
def replay(run: RunFolder, overrides: Overrides = None, debug: Debug = False) -> None:
    """Send to MLflow what it does not have of a run; can be repeated, and goes on where it was."""

    def command(console: Console) -> None:
        from rich.progress import Progress

        from panthalassa.redact import without_secrets
        from panthalassa.run_config import is_sweep
        from panthalassa.storage import open_storage
        from panthalassa.sweep.parent import replay as replay_sweep
        from panthalassa.tracking.mlflow_store import store_uri
        from panthalassa.tracking.replay import configuration, replay

        folder = open_storage(run)
        with Progress(console=console) as progress:
            task = progress.add_task("sending", total=None)

            def show(sent: int, all: int) -> None:
                progress.update(task, completed=sent, total=all)

            if is_sweep(folder):
                left_out = replay_sweep(folder, overrides or [], show)
            else:
                config = configuration(folder, overrides or [])
                where = without_secrets(store_uri(config))
                what = f"sending what {where} does not have of {run}"
                console.print(what, soft_wrap=True, markup=False)
                left_out = replay(config, folder, show)
        for line in left_out:
            console.print(line, soft_wrap=True, markup=False)
        what = "what could be read" if left_out else "all metrics"
        console.print(f"MLflow has {what} of {run}", soft_wrap=True, markup=False)

    _run(command, debug)


@energy.command()
def show(run: RunFolder, debug: Debug = False) -> None:
    """Tell what every joule of a run went to so far, restarts and repeated steps included."""

    def command(console: Console) -> None:
        from panthalassa.energy.ledger import walk
        from panthalassa.energy.table import explain, explain_nodes
        from panthalassa.run_config import run_at

        found = walk(run_at(run))
        _table(console, [*explain(found.whole.account()), *explain_nodes(found.devices)])

    _run(command, debug)


@energy.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="folder or s3:// URI of the run to compare with")],
    run_b: Annotated[str, typer.Argument(help="that of the run that is compared")],
    metric: Annotated[Metric, typer.Option(help="what is compared")] = "j_per_iteration",
    allow: Annotated[bool, typer.Option("--allow", help="also runs that are not alike")] = False,
    debug: Debug = False,
) -> None:
    """By how many percent run B takes more or less energy than run A, with a confidence interval."""

    def command(console: Console) -> None:
        from panthalassa.energy.compare import compare, explain, open_run
        from panthalassa.run_config import run_at

        a, b = (open_run(run_at(run)) for run in (run_a, run_b))
        _table(console, explain(compare(a, b, metric, allow)))

    _run(command, debug)


@energy.command()
def tune(
    run: RunFolder,
    limits: Annotated[str, typer.Option(help="watts to try, e.g. 200,250,300")] = "",
    seconds: Annotated[float, typer.Option(help="for which each is tried", min=1.0)] = 60.0,
    debug: Debug = False,
) -> None:
    """Try power limits on the GPUs of a run that trains on this machine; they are put back after it."""

    def command(console: Console) -> None:
        from panthalassa.energy.tune import explain, tune
        from panthalassa.run_config import run_at

        try:
            watts = [float(watt) for watt in limits.split(",") if watt]
        except ValueError as error:
            raise PanthalassaError(f"--limits {limits}: expected watts, as 200,250") from error
        _table(console, explain(tune(run_at(run), watts, seconds, console.print)))

    _run(command, debug)


if __name__ == "__main__":
    app()
