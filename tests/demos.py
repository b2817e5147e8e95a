"""What the demonstrations on real text share: files that a fine-tuning and an evaluation read, and what
comes of the answers."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from panthalassa.evaluate.results import Figure, read_results
from panthalassa.storage import open_storage


def beginning(text: str, letters: int) -> str:
    """So many letters of a text at most, in whole words where it has spaces."""
    if len(text) <= letters:
        return text
    return text[:letters].rpartition(" ")[0] or text[:letters]


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def told(figure: Figure) -> str:
    """A share with its interval."""
    return f"{figure.value:.1%} (95 % {figure.low:.1%} to {figure.high:.1%}, {figure.n} items)"


def learned(evaluation: str) -> bool:
    """Whether the interval of an evaluation's only task is above what needs no learning; it is told."""
    [task] = read_results(open_storage(evaluation)).tasks.values()
    figure, one = task.metrics["accuracy"].whole, task.metrics["accuracy"].baseline
    assert one is not None
    print(f"accuracy {told(figure)}; the most frequent answer or a guess: {one:.1%}")
    return figure.low > one
