"""A real browser to look at pages with: headless Chromium, driven by Selenium."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ARTEFACTS = Path(__file__).parent / "artefacts"
"""Screenshots, to be looked at by people; git-ignored."""
REQUIRED = os.environ.get("AUTOTUNE_TEST_BROWSER") == "required"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--hide-scrollbars"),
)


@cache
def _axe() -> str:
    return (files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text()


class Browser:
    """What tests ask of a page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """A window of so many CSS pixels, whatever the least size of a real one is."""
        self.resize(width, height)
        self.console()
        self.requests()
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def media(self, **features: str) -> None:
        """Such as ``prefers_color_scheme="dark"``."""
        listed = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})

    def colours(self, seen: bool) -> None:
        """Whether the eye that looks sees colours; screenshots are as it sees the page."""
        kind = {"type": "none" if seen else "achromatopsia"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", kind)

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return found

    def console(self) -> list[str]:
        """Everything that the page said since it was opened, down to warnings."""
        return [entry["message"] for entry in self._log("browser")]

    def axe(self, *rules: str) -> list[str]:
        """What axe-core finds serious or critical, by ``rules`` alone if some are named."""
        self.js(_axe())
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        found: dict[str, Any] = self.driver.execute_async_script(
            "axe.run(arguments[0]).then(arguments[1])", options
        )
        return [
            f"{rule['id']}: {node['html']}: {node['failureSummary']}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def requests(self) -> list[str]:
        """Every URL that was asked for since the page was opened; not those of Chromium itself."""
        found = []
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("chrome", "data:", "blob:"))]

    def shoot(self, name: str, *, whole: bool = True) -> Path:
        """A screenshot among the artefacts; ``whole`` takes what is below the window too."""
        ARTEFACTS.mkdir(exist_ok=True)
        wanted: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            page = "document.documentElement"
            size = self.js(f"return [{page}.scrollWidth, {page}.scrollHeight]")
            wanted["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"]
        path = ARTEFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(data))
        return path


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile.

    Without one on this machine the test is skipped, or fails where the environment says
    ``AUTOTUNE_TEST_BROWSER=required``.
    """
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        (pytest.fail if REQUIRED else pytest.skip)("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
