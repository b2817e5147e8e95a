"""A headless Chromium (Debian's packages chromium and chromium-driver) for the pages of reports."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import Page
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def _driver(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[webdriver.Chrome, Path]]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    profile, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
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
