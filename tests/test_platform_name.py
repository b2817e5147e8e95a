"""The folder `platform/` never stands in for the standard library's module of that name.

Python puts the current directory first, so at the repository's root `import platform` would find the
folder if it were a regular package; without an `__init__.py` the standard library's module wins.
"""

import os
import platform
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = Path(sysconfig.get_path("stdlib")) / "platform.py"
PROGRAM = "import platform, sys; print(platform.__file__, platform.system(), sep='\\n')"


def test_the_folder_is_no_package() -> None:
    assert (ROOT / "platform" / "panthalassa" / "config.py").exists()
    assert not list((ROOT / "platform").glob("*.py*"))


def test_what_the_library_reads_is_in_its_package() -> None:
    """An editable install has every file; a wheel has those that are named."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "platform" / "panthalassa"
    kept = {
        file for pattern in named["package-data"]["panthalassa"] for file in package.glob(pattern)
    }
    files = {file for file in package.rglob("*.*") if file.is_file()}
    assert {file for file in files if file.suffix not in (".py", ".pyc")} == kept


def test_these_tests_have_the_standard_library_module() -> None:
    assert Path(platform.__file__) == STANDARD


@pytest.mark.parametrize("pythonpath", [None, "platform", str(ROOT / "platform"), str(ROOT), "."])
@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_import_platform_finds_the_standard_library_from_the_root(
    tmp_path: Path, pythonpath: str | None, how: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    paths = [pythonpath] if pythonpath else []
    arguments = {"-c": ["-c", PROGRAM], "-m": ["-m", "probe"], "file": [str(tmp_path / "probe.py")]}
    (tmp_path / "probe.py").write_text(PROGRAM)
    if how == "-m":
        paths.append(str(tmp_path))
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    result = subprocess.run(
        [sys.executable, *arguments[how]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(STANDARD), platform.system()]


def test_the_library_is_imported_from_the_folder_all_the_same() -> None:
    program = "import panthalassa.config as c, platform; print(c.__file__, platform.__file__)"
    environment = {**os.environ, "PYTHONPATH": "platform"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    config = ROOT / "platform" / "panthalassa" / "config.py"
    assert [Path(name).resolve() for name in result.stdout.split()] == [config, STANDARD.resolve()]


def test_the_command_line_runs_as_a_module_from_the_root() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "panthalassa.cli", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "prepare" in result.stdout
    assert "train" in result.stdout


def test_a_ray_worker_has_the_standard_library_module(ray_cluster: None) -> None:
    """Also when a task works in the repository's root and has that first in its path."""
    import ray

    @ray.remote(num_cpus=0.25, max_calls=1)  # it leaves its worker changed
    def where(root: str | None) -> str:
        import importlib
        import os
        import sys

        if root:
            os.chdir(root)
            sys.path.insert(0, root)
            sys.modules.pop("platform")
            importlib.invalidate_caches()
        import platform

        return str(platform.__file__)

    found = ray.get([where.remote(root) for root in (None, str(ROOT))], timeout=120)
    assert [Path(name) for name in found] == [STANDARD, STANDARD]
