"""A headless Chromium (Debian's packages chromium and chromium-driver) for the pages of reports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import NoBrowser, Page, start
from selenium import webdriver


@pytest.fixture(scope="session")
def _driver(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[webdriver.Chrome, Path]]:
    profile, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    try:
        running = start(profile)
    except NoBrowser as error:
        pytest.skip(str(error))
    yield running, downloads
    running.quit()


@pytest.fixture
def page(_driver: tuple[webdriver.Chrome, Path]) -> Iterator[Page]:
    """A page; afterwards it must have left no problem in the console and asked nobody for anything."""
    found = Page(*_driver)
    yield found
    assert found.problems() == []
    schemes = {url.partition(":")[0] for url in found.requests()}
    assert schemes <= {"file", "data", "blob", "about"}
