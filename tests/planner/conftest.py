"""What tests of plans share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def home_of_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Traces are kept in a home of its own, and so made once for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield
