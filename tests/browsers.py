"""A page from a file in a headless Chromium."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

DRAWN_SECONDS = 60
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
PIXELS = """
const counts = {};
for (const figure of document.querySelectorAll("figure")) {
  const colours = new Set();
  (function walk(node) {
    const inside = [...(node.shadowRoot?.children ?? []), ...node.children];
    for (const child of inside) {
      if (child.tagName === "CANVAS" && child.width) {
        const { data } = child.getContext("2d").getImageData(0, 0, child.width, child.height);
        for (let i = 0; i < data.length; i += 4)
          if (data[i + 3] > 200) colours.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
      }
      walk(child);
    }
  })(figure);
  counts[figure.id] = [...colours];
}
return counts;
"""
"""The opaque colours on each figure's canvases."""


class NoBrowser(Exception):
    """Debian's packages chromium and chromium-driver are not installed."""


def start(profile: Path) -> webdriver.Chrome:
    """A browser that keeps what it has in `profile`, to be `quit`. Raises NoBrowser."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        raise NoBrowser("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Page:
    """A page from a file, in a browser of its own."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def open(self, file: Path, width: int = 1200, dark: bool = False, touch: bool = False) -> None:
        """Open a report at that width, and wait until its figures are drawn."""
        self.driver.get("about:blank")
        self.requests()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": touch}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.system(dark)
        self.driver.get(file.as_uri())
        drawn = "(window.Bokeh?.documents ?? []).every((d) => d.is_idle)"
        self.wait(f"{drawn} && document.readyState === 'complete'")

    def system(self, dark: bool) -> None:
        """What the system's settings say of light and dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def value(self, expression: str) -> Any:
        return self.run(f"return {expression}")

    def wait(self, expression: str) -> None:
        WebDriverWait(self.driver, DRAWN_SECONDS, 0.1).until(lambda _: self.value(expression))

    def problems(self) -> list[str]:
        """What the console has, but for information, and for hints that tests read canvases slowly."""
        entries = self.driver.get_log("browser")
        return [
            entry["message"]
            for entry in entries
            if entry["level"] not in ("INFO", "DEBUG") and entry["source"] != "rendering"
        ]

    def requests(self) -> list[str]:
        """The URLs that were asked for since the last call, but for what the page's policy forbade."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
        forbidden = {f["requestId"] for f in failed if f.get("blockedReason") == "csp"}
        return [s["request"]["url"] for s in sent if s["requestId"] not in forbidden]

    def screenshot(self, file: Path, part: str = "html") -> bytes:
        """Of the whole page, or of the first element that a selector finds, as PNG."""
        clip = self.value(
            f"(({{x, y, width, height}}) => ({{x, y: y + scrollY, width, height, scale: 1}}))"
            f"(document.querySelector({part!r}).getBoundingClientRect())"
        )
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        data = base64.b64decode(shot["data"])
        file.write_bytes(data)
        return data

    def download(self, button: str) -> str:
        """The text of the file that a button gives."""
        self.run(f"document.querySelector({button!r}).click()")
        wait = WebDriverWait(self.driver, DRAWN_SECONDS, 0.1)
        (file,) = wait.until(lambda _: list(self.downloads.glob("*.csv")))
        text = file.read_text()
        file.unlink()
        return text
