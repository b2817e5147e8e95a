"""A command as the driver of a submitted job: the job's arguments come in, the command runs.

Ray runs a job in a copy of what was submitted and deletes that copy afterwards. So the command joins the
cluster that runs the job, and refuses folders that would vanish with it.
"""

import argparse
import sys
from pathlib import Path
from typing import Literal

from panthalassa.config import Config
from panthalassa.config_file import load
from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.evaluate import config as evaluation
from panthalassa.evaluate.config import Evaluation

Command = Literal["train", "prepare", "sweep", "finetune", "evaluate"]
JOIN = "cluster.address=auto"


def main(command: Command) -> None:
    """Run `panthalassa COMMAND` with the arguments `--config FILE KEY=VALUE…` of this process."""
    parser = argparse.ArgumentParser(description=f"`panthalassa {command}` inside a job")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and all logs")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args()
    overrides = [JOIN, *given.overrides]
    try:
        refuse_relative(read_config(Path(given.config), overrides, command), command)
    except PanthalassaError as error:
        sys.exit(f"panthalassa: {error}")
    from panthalassa.cli import app

    app([command, given.config, *overrides, *["--debug"] * given.debug])


def read_config(path: Path, overrides: list[str], command: Command) -> Config | Evaluation:
    """The configuration of a command's runs, or of an evaluation. Raises ConfigError."""
    if command == "evaluate":
        return evaluation.load(path, overrides)
    if command == "sweep":
        from panthalassa.sweep import space

        return space.load(path, overrides).config
    if command == "finetune":
        from panthalassa.finetune import config  # with it comes torch

        return config.load(path, overrides)
    return load(path, overrides)


def relative_folders(config: Config | Evaluation, command: Command) -> dict[str, str]:
    """What the command reads and writes below its current directory, by key."""
    if isinstance(config, Evaluation):
        places = evaluation.places(config)
    else:
        places = {"corpus.directory": config.corpus.directory}
        if command != "prepare":
            places["run.directory"] = config.run.directory
        if config.finetune:
            places["finetune.start"] = config.finetune.start
    return {key: place for key, place in places.items() if is_relative(place)}


def is_relative(place: str) -> bool:
    """Whether a folder means another one in another directory."""
    return "://" not in place and not place.startswith(("/", "~"))


def refuse_relative(config: Config | Evaluation, command: Command) -> None:
    """Raises ConfigError for folders that would vanish with the job."""
    if found := relative_folders(config, command):
        listed = ", ".join(f"{key}={place}" for key, place in found.items())
        raise ConfigError(
            f"{listed}: a relative folder lies in the job's own directory, which Ray deletes. Give "
            "s3://bucket/prefix, or an absolute path that all nodes see. (`panthalassa submit` makes it "
            "absolute by itself when the whole cluster is on its machine.)"
        )
