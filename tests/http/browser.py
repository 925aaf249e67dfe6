"""A real Chromium for the tests of the console, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from tests.tools import node_file, program

#: What distributions call the program.
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: How long anything may take to appear, in milliseconds: the server generates eagerly on a shared machine.
PATIENCE = 60_000
#: What axe calls findings that keep people out.
GRAVE = ("serious", "critical")


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
        self.page.evaluate(node_file("axe-core", "axe.min.js").read_text(encoding="utf-8"))
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
def launched() -> Iterator[Any]:
    """A browser without tabs, for all tests of a module: to start one takes a second and more."""
    path = program(*_PROGRAMS)
    # Chromium has no sandbox for root, as which tests run in containers.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing(browser: Any, origin: str, **context: Any) -> Iterator[Tab]:
    """A new tab, which shares nothing with others. context: how it is set, as Playwright takes it."""
    made = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
    try:
        yield Tab(made.new_page(), origin)
    finally:
        made.close()
