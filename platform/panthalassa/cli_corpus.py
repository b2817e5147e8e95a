"""`panthalassa corpus …`: what a prepared corpus holds, and whether it is still what was prepared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from panthalassa.terminal import Debug, Overrides, run_command, show_rows

if TYPE_CHECKING:
    from panthalassa.storage import Storage
    from panthalassa.stream.order import Mixture

corpus = typer.Typer(
    no_args_is_help=True, help="What a prepared corpus holds, and whether it is still whole."
)

Place = Annotated[
    str,
    typer.Argument(
        help="a corpus's folder or s3:// URI, or a configuration (YAML) that names it",
        metavar="CORPUS",
    ),
]


@corpus.command()
def verify(
    place: Place,
    overrides: Overrides = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="the one that it must have", metavar="SHA256")
    ] = None,
    debug: Debug = False,
) -> None:
    """Read and hash a corpus again; name each file that is missing, short, rotten or not listed."""

    def command(console: Console) -> None:
        from rich.progress import Progress

        from panthalassa.corpus.verify import explain, verify

        storage, _ = _open(place, overrides)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("reading", total=None)
            found = verify(
                storage,
                lambda done, all: progress.update(task, completed=done, total=all),
                fingerprint,
            )
        for problem in found.problems:
            console.print(problem, soft_wrap=True, markup=False)
        show_rows(console, explain(found))
        if found.problems:
            raise typer.Exit(1)

    run_command(command, debug)


@corpus.command()
def show(
    place: Place,
    overrides: Overrides = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="of the mixture; else that of the configuration, or 1", min=1e-3),
    ] = None,
    debug: Debug = False,
) -> None:
    """List a corpus's domains: documents, tokens, their share, and how often training draws them."""

    def command(console: Console) -> None:
        from panthalassa.corpus.manifest import read_manifest
        from panthalassa.corpus.show import table
        from panthalassa.stream.order import Mixture, Order

        storage, mixture = _open(place, overrides)
        manifest = read_manifest(storage)
        mixture = Mixture(temperature) if temperature else mixture
        order = Order(manifest, manifest.sequence_length, mixture, seed=0)
        for line in table(manifest, order.shares()):
            console.print(line, soft_wrap=True, markup=False)

    run_command(command, debug)


def _open(place: str, overrides: list[str] | None) -> "tuple[Storage, Mixture]":
    """The corpus at a place, or of a configuration, and the mixture that is drawn from it."""
    from panthalassa.config_file import load
    from panthalassa.errors import ConfigError
    from panthalassa.storage import open_storage
    from panthalassa.stream.order import Mixture

    if place.endswith((".yaml", ".yml")) or Path(place).is_file():
        config = load(place, overrides)
        stream = config.stream
        mixture = Mixture(stream.temperature, stream.weights, stream.image_share)
        return open_storage(config.corpus.directory), mixture
    if overrides:
        raise ConfigError(f"{place} is a corpus, which {overrides[0]} can not change")
    return open_storage(place), Mixture()
