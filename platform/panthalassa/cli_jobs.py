"""`panthalassa submit`, and `panthalassa jobs`: what runs on a cluster that stands."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from panthalassa.terminal import Debug, Overrides, run_command, show_rows

jobs = typer.Typer(no_args_is_help=True)

Address = Annotated[
    str | None,
    typer.Option(
        help="the cluster's dashboard; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's",
        metavar="URL",
    ),
]
SubmittedJob = Annotated[
    str, typer.Argument(help="the id of a job, or the name of its run", metavar="JOB")
]


def submit(
    config: Annotated[Path, typer.Argument(help="configuration of the run, YAML")],
    overrides: Overrides = None,
    job: Annotated[
        Literal["pretrain", "prepare", "sweep", "finetune", "evaluate"],
        typer.Option(help="which of jobs/ to run"),
    ] = "pretrain",
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="the repository, of which platform/ and jobs/ are uploaded")
    ] = Path(),
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the job")] = False,
    debug: Debug = False,
) -> None:
    """Train (or do another of jobs/) on a running cluster, and follow it; its exit code is the job's.

    A first Ctrl-C stops the job with a checkpoint, a second one leaves it to itself.
    """

    def command(console: Console) -> None:
        from panthalassa.jobs.follow import follow
        from panthalassa.jobs.server import connect
        from panthalassa.jobs.submit import submit

        client = connect(address)
        sent = submit(client, config, overrides or [], job, working_dir)
        console.print(f"job {sent} at {client.get_address()}", soft_wrap=True, markup=False)
        if not detach:
            raise typer.Exit(follow(client, sent, console))

    run_command(command, debug)


@jobs.command()
def status(address: Address = None, debug: Debug = False) -> None:
    """List the jobs of a cluster, and how each stands."""

    def command(console: Console) -> None:
        from panthalassa.jobs.server import connect
        from panthalassa.jobs.submit import explain

        rows = list(explain(client := connect(address)))
        show_rows(console, rows or [("no jobs", f"at {client.get_address()}")])

    run_command(command, debug)


@jobs.command("follow")
def follow_job(job: SubmittedJob, address: Address = None, debug: Debug = False) -> None:
    """Show a job's log from its beginning to its end; Ctrl-C as in submit."""

    def command(console: Console) -> None:
        from panthalassa.jobs.follow import follow
        from panthalassa.jobs.server import connect
        from panthalassa.jobs.submit import find

        client = connect(address)
        raise typer.Exit(follow(client, str(find(client, job).submission_id), console))

    run_command(command, debug)


@jobs.command("stop")
def stop_job(job: SubmittedJob, address: Address = None, debug: Debug = False) -> None:
    """Stop a job at the next step boundary, with a checkpoint, and wait for its end."""

    def command(console: Console) -> None:
        from panthalassa.jobs.follow import stop
        from panthalassa.jobs.server import connect
        from panthalassa.jobs.submit import find

        client = connect(address)
        raise typer.Exit(stop(client, str(find(client, job).submission_id), console))

    run_command(command, debug)
