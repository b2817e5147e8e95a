"""What people are told to open is there."""

import re

import pytest
from conftest import PLATFORM

ROOT = PLATFORM.parent
PATHS = re.compile(r"\b(?:jobs|k8s|platform|tests)/[\w./-]*[\w/]")


@pytest.mark.parametrize(
    "readme", ["README.md", "k8s/README.md", "tests/README.md", "tests/benchmarks/README.md"]
)
def test_files_that_a_readme_names_exist(readme: str) -> None:
    named = set(PATHS.findall((ROOT / readme).read_text()))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
