"""The configuration of an evaluation: which model, what it is asked, where the results go, on what.

It is read as that of a run is: YAML and dotted overrides, each wrong key named.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from panthalassa.config import Cluster
from panthalassa.config_evaluation import Tasks
from panthalassa.config_file import build, read
from panthalassa.config_values import LocalFolder, Place, Positive, Section
from panthalassa.storage import open_storage


class Evaluation(Section):
    model: Place
    """A run, of which the newest good checkpoint is taken, or an exported folder."""
    output: Place
    """The folder or s3:// URI of the results, one for each evaluation; the same goes on where it was."""
    tasks: Tasks
    """What is asked of the model, each by its own name."""
    corpus: Place | None = None
    """A prepared corpus (folder or s3://): items that share thirteen words in a row with one of its
    training documents are counted, and the metrics are told without them, too."""
    chat: bool = False
    """Whether contexts and prompts are put as what a user says in a chat, which tuned models expect."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights; logarithms are taken in fp32."""
    batch_tokens: Positive = 4096
    """That a worker reads at a time, with padding; a longer text is read alone."""
    length: Annotated[int, Field(ge=2)] | None = None
    """Tokens that are read at most: longer contexts are cut on the left, longer texts read in windows.
    As many as the model was trained on if not given."""
    staging: LocalFolder | None = None
    """A local folder of each node for files on their way from object storage; else the system's."""
    cluster: Cluster = Cluster()
    """`workers` answer side by side; each holds the whole model."""


def load(path: Path, overrides: list[str]) -> Evaluation:
    """Raises ConfigError with every mistake at once."""
    return build(read(path), overrides, str(path), Evaluation)


def places(config: Evaluation) -> dict[str, str]:
    """All folders of an evaluation, by key."""
    data = {f"tasks: the data of {entry.name}": entry.data for entry in config.tasks}
    corpus = {"corpus": config.corpus} if config.corpus else {}
    return {"model": config.model, "output": config.output, **corpus, **data}


def anchored(config: Evaluation) -> dict[str, object]:
    """Overrides by which its folders are the same in any other directory of this machine."""
    entries = [
        entry.model_dump(mode="json") | {"data": open_storage(entry.data).uri}
        for entry in config.tasks
    ]
    kept = {"model": config.model, "output": config.output}
    kept |= {"corpus": config.corpus} if config.corpus else {}
    return {key: open_storage(place).uri for key, place in kept.items()} | {"tasks": entries}
