"""What a job gets of this machine: a folder of links to the package, `jobs/` and its configuration.

Ray uploads that folder, and nothing else can slip in: no checkpoint, corpus, virtual environment or
history. `.gitignore` and `.rayignore` hold inside it.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from panthalassa.errors import ConfigError

PARTS = ("platform", "jobs", ".gitignore", ".rayignore")
TEXTS = "jobs/corpora"
"""The one folder of `jobs/` that only a preparation reads."""


@contextmanager
def uploaded(directory: Path, others: Mapping[str, Path]) -> Iterator[Path]:
    """A folder that stands for `directory`, the root of the repository, with what belongs to a job.

    others: what the job needs besides, by its path there. Raises ConfigError when `directory` is not
    the repository.
    """
    directory = directory.resolve()
    if not (directory / "jobs").is_dir() or not (directory / "platform" / "panthalassa").is_dir():
        raise ConfigError(
            f"{directory} has no jobs/ and platform/panthalassa/, which a job needs. Call this from the "
            "repository's root, or give that as --working-dir."
        )
    with tempfile.TemporaryDirectory(prefix="panthalassa-job-") as folder:
        for part in PARTS:
            if (directory / part).exists():
                (Path(folder) / part).symlink_to(directory / part)
        for name, source in others.items():
            place = Path(folder) / name
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(source.resolve())
        yield Path(folder)


def largest(folder: Path, count: int = 3) -> str:
    """The folders, two levels deep, and files in `folder` that take the most, for people."""
    sizes: Counter[Path] = Counter()
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file = Path(where) / name
            part = Path(*file.relative_to(folder).parts[:2])
            sizes[part] += file.stat().st_size
    return ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in sizes.most_common(count))
