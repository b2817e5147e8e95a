"""What a run was made by: the version of this code, and of the packages under it, as tags."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT = "PANTHALASSA_COMMIT"
"""The variable that tells the commit where the code is no checkout, as in a submitted job."""
PACKAGES = ("torch", "ray", "numpy", "pyarrow", "tokenizers", "mlflow")


def provenance() -> dict[str, str]:
    """Tags; the commit only where it is known."""
    packages = " ".join(f"{name}=={_version(name)}" for name in PACKAGES)
    tags = {
        "panthalassa": _version("panthalassa"),
        "packages": f"python=={platform.python_version()} {packages}",
        "mlflow.source.name": "panthalassa train",
    }
    if known := commit(Path(__file__).parent) or os.environ.get(COMMIT):
        tags["mlflow.source.git.commit"] = known.partition(",")[0]
        tags["commit"] = known
    return tags


def commit(folder: Path) -> str:
    """The commit of a git checkout, with a mark when files differ from it; empty where there is none."""
    if not (found := _git(folder, "rev-parse", "HEAD")):
        return ""
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found}, with changes" if changed else found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder, not installed
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git says of a folder; nothing when it is no checkout, or there is no git."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
