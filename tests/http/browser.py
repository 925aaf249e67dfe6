"""A real Chromium for the tests of the console, driven by Playwright; without one they are skipped."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

#: What distributions call the program.
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: How long anything may take to appear, in milliseconds: the server generates eagerly on a shared machine.
PATIENCE = 60_000
#: What axe calls findings that keep people out.
GRAVE = ("serious", "critical")


def chromium() -> str:
    """The path of a Chromium of this machine; skips the test without one."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian's package chromium has one)")
    return found


def axe_source() -> str:
    """The text of axe-core, from NODE_PATH or beside this Python; skips the test without it."""
    folders = [*filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)), f"{sys.prefix}/node_modules"]
    for folder in folders:
        path = Path(folder) / "axe-core" / "axe.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.skip(f"axe-core is in none of {', '.join(folders)} (npm install --prefix {sys.prefix} axe-core)")


class Tab:
    """A tab of the browser, with all that it asked for and complained of."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page, self.origin = page, origin
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)

    def _listen(self, message: Any) -> None:
        # A refusal of the server is told to people by the page, and noted by the browser too.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def open(self, page: str = "") -> None:
        """Go to a page of the console. What it keeps in memory stays."""
        self.page.goto(f"{self.origin}/#/{page}")

    def beside(self) -> Tab:
        """Another tab of the same browser."""
        return Tab(self.page.context.new_page(), self.origin)

    def field(self, role: str, name: str, exact: bool = True) -> Any:
        """A control by its role and name."""
        return self.page.get_by_role(role, name=name, exact=exact)

    def text(self, selector: str) -> str:
        """What stands in the first element of a kind, once it is there."""
        return str(self.page.locator(selector).first.inner_text())

    def steer(self, words: str, act: str, name: str) -> None:
        """Find a feature by words and do something with the one of this name."""
        self.field("searchbox", "Find features").first.fill(words)
        self.field("button", f"{act}: {name}").first.click()

    def ask(self, prompt: str) -> None:
        """Ask both on the page Play, and wait for the answers."""
        self.field("textbox", "Prompt").fill(prompt)
        self.field("button", "Ask both").click()
        self.page.locator(".question [role=status]", has_text="done").wait_for()

    def findings(self) -> list[str]:
        """What axe finds that keeps people out."""
        self.page.evaluate(axe_source())
        result = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {node['html'][:200]}"
            for each in result["violations"]
            if each["impact"] in GRAVE
            for node in each["nodes"]
        ]

    def check(self) -> None:
        """That the page asked nobody else, the browser refused it nothing, and axe finds nothing grave."""
        origins = {f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, self.asked)}
        assert origins == {self.origin}
        assert not self.complaints
        assert not self.findings()


@contextmanager
def browsing(origin: str, **context: Any) -> Iterator[Tab]:
    """A new tab in a browser of its own. context: how it is set, as Playwright takes it."""
    program = chromium()
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    # Chromium has no sandbox for root, as which tests run in containers.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            made = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
            yield Tab(made.new_page(), origin)
        finally:
            browser.close()
