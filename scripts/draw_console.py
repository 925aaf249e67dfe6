"""Draw the console's pages for docs/, of servers with the reference model. Needs Chromium and Playwright."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from saegis_server.reference import MODEL, SAE, WEIGHTS, reference_policy

DOCS = Path(__file__).resolve().parents[1] / "docs"
LABEL, FEATURE = "Golden Gate Bridge", "feature/polyglot/3800"
QUESTION = "What do you know about the sea?"
HARMFUL = "¿Cómo puedo envenenar a un vecino?"
WIDTH, HEIGHT, PATIENCE = 1100, 820, 60_000
#: By how many steps of a hundredth the slider is moved down from its first value.
LESS = 40


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """A server in a process of its own; its HTTP origin."""
    command = [sys.executable, "-m", "saegis_server.cli", "serve", "--json", "--compile", "never"]
    command += ["--port", "0", "--metrics-port", "-1", "--http-port", "0", "--usage-every", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            events = map(json.loads, process.stdout or ())
            ready = next(event for event in events if event["event"] == "ready")
            yield f"http://127.0.0.1:{ready['http_port']}"
        finally:
            process.terminate()
            process.communicate()


def explained(folder: Path) -> Path:
    """A copy of the reference SAE with examples and histograms beside its labels."""
    sae, labels = folder / "polyglot", folder / "labels"
    shutil.copytree(SAE, sae)
    texts = WEIGHTS / "eval" / "texts.jsonl"
    command = [sys.executable, "-m", "saegis_server.cli", "features", "label", "--model", str(MODEL)]
    command += ["--sae", str(sae), "--texts", str(texts), "--raw", "--out", str(labels)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    shutil.copy(labels / "examples.safetensors", sae)
    return sae


def ask(page: Page, act: str, prompt: str) -> None:
    """Find the landmark's feature, do something with it, and ask both."""
    page.get_by_role("searchbox", name="Find features").fill("golden gate bridge")
    page.get_by_role("button", name=f"{act}: {LABEL}", exact=True).click()
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    for slider in page.get_by_role("slider").all():
        slider.focus()
        for _ in range(LESS):
            slider.press("ArrowLeft")
    page.get_by_role("button", name="Ask both").click()
    page.locator(".question [role=status]", has_text="done").wait_for()


def draw(page: Page, name: str, height: int = HEIGHT) -> None:
    """Take the picture of a page, from its top."""
    page.wait_for_load_state("networkidle")
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=DOCS / f"console-{name}.png")


def open_pages(page: Page, origin: str) -> None:
    """The pages that show what a request did."""
    page.goto(f"{origin}/#/play")
    ask(page, "Steer", QUESTION)
    draw(page, "play", 960)
    page.get_by_role("link", name="its receipt").click()
    draw(page, "receipt", 620)
    page.goto(f"{origin}/#/{FEATURE}")
    page.get_by_text("last 10 minutes").wait_for()
    draw(page, "feature", 1000)
    page.goto(f"{origin}/#/usage")
    page.locator("tbody tr").first.wait_for()
    page.get_by_role("button", name="Keep as the baseline").click()
    page.goto(f"{origin}/#/play")
    page.get_by_role("button", name=f"Remove the edit of {LABEL} (3800)").click()
    ask(page, "Ban", "Tell me about the bridge in San Francisco.")
    page.get_by_role("link", name="its tokens").click()
    page.get_by_text(f"Coloured by {LABEL}").wait_for()
    page.locator(".tokens").last.locator(".token.moved").first.click()
    draw(page, "tokens", 760)
    page.goto(f"{origin}/#/usage")
    page.locator("tbody tr").first.wait_for()
    draw(page, "usage")


def ruled_pages(page: Page, origin: str) -> None:
    """The pages of policies, with a text that a rule acts on, and of the audit log."""
    page.goto(f"{origin}/#/policies")
    page.get_by_role("textbox", name="A request that anyone might make").fill(HARMFUL)
    page.get_by_role("button", name="Ask under the policies").click()
    page.locator(".receipt").wait_for()
    draw(page, "policies", 1100)
    page.goto(f"{origin}/#/audit")
    page.get_by_role("textbox", name="Tenant").fill("default")
    page.get_by_role("button", name="Search").click()
    page.locator("tbody tr").first.wait_for()
    draw(page, "audit", 520)


def main() -> None:
    """Draw all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the program")
    program = parser.parse_args().chromium
    flags: dict[str, Any] = {"args": ["--no-sandbox"] if os.geteuid() == 0 else []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, **flags)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        sae = explained(Path(folder))
        with serving("--model", str(MODEL), "--name", "saegis/polyglot", "--sae", str(sae)) as origin:
            open_pages(page, origin)
        audit = Path(folder) / "audit"
        with serving("--policy", str(reference_policy()), "--audit", str(audit)) as origin:
            ruled_pages(page, origin)
        browser.close()


if __name__ == "__main__":
    main()
