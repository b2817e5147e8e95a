"""`panthalassa export` and `import`: models on their way to Hugging Face's libraries, and back.

`panthalassa evaluate` is below it, too.
"""

from functools import partial
from typing import Annotated, Literal

import typer
from rich.console import Console

from panthalassa.cli_evaluate import evaluate
from panthalassa.terminal import Debug, run_command, show_rows

model = typer.Typer()
model.add_typer(evaluate, name="evaluate")

Staging = Annotated[
    str | None,
    typer.Option(
        help="a local folder for files on their way from and to object storage; else the system's"
    ),
]


@model.command()
def export(
    run: Annotated[str, typer.Argument(help="a run's folder or s3:// URI", metavar="RUN")],
    folder: Annotated[
        str, typer.Argument(help="an empty or new folder or s3:// URI", metavar="DIR")
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="of the weights; else as the checkpoint has them"),
    ] = None,
    shard_gigabytes: Annotated[
        float, typer.Option(help="of a file of weights, at most", min=1e-6)
    ] = 5.0,
    licence: Annotated[
        str | None,
        typer.Option(help="for the model card; else apache-2.0 of what was trained here"),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="an evaluation of the run, for the model card; may be repeated"),
    ] = None,
    staging: Staging = None,
    debug: Debug = False,
) -> None:
    """Write a run's newest good checkpoint as transformers reads it, with tokenizer and model card."""

    def command(console: Console) -> None:
        from panthalassa.evaluate.telling import for_card
        from panthalassa.exchange.export import explain, export
        from panthalassa.run_config import run_at
        from panthalassa.storage import open_storage

        tell = partial(console.print, soft_wrap=True, markup=False)
        size = int(shard_gigabytes * 1e9)
        target = open_storage(folder)
        told = [for_card(open_storage(place)) for place in evaluation or []]
        found = export(run_at(run), target, tell, dtype, size, licence, staging, told)
        show_rows(console, explain(found))

    run_command(command, debug)


@model.command("import")
def import_(
    folder: Annotated[
        str,
        typer.Argument(
            help="a Llama model as transformers writes it: a folder or s3:// URI", metavar="DIR"
        ),
    ],
    run: Annotated[
        str, typer.Argument(help="the folder or s3:// URI of a run to be", metavar="RUN")
    ],
    staging: Staging = None,
    debug: Debug = False,
) -> None:
    """Make a run out of a Llama model: `train` with that run.name goes on from its weights."""

    def command(console: Console) -> None:
        from panthalassa.exchange.importing import explain, import_model
        from panthalassa.storage import open_storage

        tell = partial(console.print, soft_wrap=True, markup=False)
        found = import_model(open_storage(folder), open_storage(run), tell, staging)
        show_rows(console, explain(found))

    run_command(command, debug)
