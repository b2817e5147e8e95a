"""What a run was made by: the version of this code, and of the packages under it, as tags."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "ray", "numpy", "pyarrow", "tokenizers", "mlflow")


def provenance() -> dict[str, str]:
    """Tags; the commit only where this code is a git checkout, with a mark when files differ from it."""
    packages = " ".join(f"{name}=={_version(name)}" for name in PACKAGES)
    tags = {
        "panthalassa": _version("panthalassa"),
        "packages": f"python=={platform.python_version()} {packages}",
        "mlflow.source.name": "panthalassa train",
    }
    if commit := _git("rev-parse", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        tags["mlflow.source.git.commit"] = commit
        tags["commit"] = f"{commit}, with changes" if changed else commit
    return tags


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder, not installed
        return "unknown"


def _git(*arguments: str) -> str:
    """What git says of the folder of this file; nothing when it is no checkout, or there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
