"""`panthalassa generate`: what a model says."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from panthalassa.cli_model import Staging
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.terminal import Debug, run_command

if TYPE_CHECKING:
    from panthalassa.model.text import Show

ROUND = 128
"""Prompts of a file after which results are written."""


def generate(
    run: Annotated[
        str,
        typer.Argument(help="a run, or a folder that export wrote; local or s3://", metavar="RUN"),
    ],
    prompt: Annotated[str | None, typer.Argument(help="else it is read from stdin")] = None,
    max_tokens: Annotated[int, typer.Option(help="of a continuation", min=1)] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token", min=0.0)
    ] = 0.7,
    top_k: Annotated[
        int, typer.Option(help="draw from so many tokens at most; 0: from all", min=0)
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="draw from the likely tokens that make this probability")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="above 1: fewer tokens that stand in the text already")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="the same seed, the same text")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="end before this string; can be repeated")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="a prompt is what a user says, and is answered")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="with --chat: what the system says before a prompt")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="in front of the prompt, local or s3://; can be repeated", metavar="FILE"
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help='prompts, local or s3://: one a line, or .jsonl of {"prompt": …} or {"messages": …}; '
            'beside a prompt there may be {"images": ["path", …]}',
            metavar="FILE",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="where the results of --file go (.jsonl); else stdout", metavar="FILE"),
    ] = None,
    staging: Staging = None,
    debug: Debug = False,
) -> None:
    """Continue or answer a prompt, or each of a file, with a run's newest checkpoint or an export."""

    def command(console: Console) -> None:
        if file and prompt is not None:
            raise ConfigError("there are a prompt and --file: give one of them")
        if out and not file:
            raise ConfigError("--out is for the results of --file; redirect stdout instead")
        if image and file:
            raise ConfigError("--image is for the prompt: with --file name images in its lines")
        if system and not chat:
            raise ConfigError("--system is for chats: give --chat, too")

        _check_utf8(run, prompt, system, file, out, *(stop or ()), *(image or ()))

        from panthalassa.exchange.prompts import (
            check_results,
            image_places,
            prompt_of,
            read_prompts,
            write_results,
        )
        from panthalassa.model.sampling import Sampling

        setting = Sampling(temperature, top_k, top_p, seed, repetition_penalty)
        shown = tuple(image or ())
        prompts = read_prompts(file) if file else [prompt_of(_given(prompt, shown), shown)]
        places = [image_places(one, file) for one in prompts]
        if out:
            check_results(out)

        from panthalassa.exchange.load import open_here
        from panthalassa.exchange.pictures import read_pictures, vision_of
        from panthalassa.model.text import continue_texts

        tell = partial(print, file=sys.stderr)
        opened = open_here(run, staging, tell)
        vision = vision_of(opened.model.config, opened.name) if any(places) else None
        tokens = vision.tokens if vision else 0
        asked = [one.ids(opened.tokenizer, chat, system, tokens) for one in prompts]
        chats = [one.is_chat(chat) for one in prompts]
        for notice in (
            opened.notice(max(map(len, asked)) + max_tokens),
            *map(opened.notice_of_format, sorted(set(chats))),
        ):
            if notice:
                tell(notice)

        def ask(part: slice, show: "Show | None" = None) -> list[str]:
            size = vision.image_size if vision else 0
            images = [read_pictures(some, size) for some in places[part]] if vision else None
            return continue_texts(
                opened.model,
                opened.tokenizer,
                asked[part],
                max_tokens,
                setting,
                stop or (),
                show,
                chats=chats[part],
                images=images,
            )

        if not file:
            try:
                ask(slice(1), lambda _, piece: typer.echo(piece.encode(), nl=False))
            finally:
                typer.echo()
            return
        results: list[str] = []
        for start in range(0, len(asked), ROUND):
            found = ask(slice(start, start + ROUND))
            lines = [p.result(text) for p, text in zip(prompts[start:], found, strict=False)]
            results += lines
            if out:
                write_results(out, results)
            else:
                typer.echo("".join(lines).encode(), nl=False)
        if out:
            console.print(f"{len(results)} continuations in {out}", soft_wrap=True, markup=False)

    run_command(command, debug)


def _check_utf8(*arguments: str | None) -> None:
    """Raises ConfigError for bytes of the command line that are no UTF-8."""
    for argument in arguments:
        try:
            (argument or "").encode()
        except UnicodeEncodeError as error:
            shown = ascii(argument[:60]) if argument else ""
            raise ConfigError(f"{shown} is no UTF-8, from character {error.start} on") from None


def _given(prompt: str | None, images: tuple[str, ...]) -> str:
    """The prompt of the command line, or what stdin has. Raises PanthalassaError for none without
    images."""
    if prompt is None:
        if sys.stdin.isatty():
            print("the prompt, and Ctrl-D at its end:", file=sys.stderr)
        prompt = sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
    if not prompt and not images:
        raise PanthalassaError("the prompt is empty: there is nothing that could be continued")
    return prompt
