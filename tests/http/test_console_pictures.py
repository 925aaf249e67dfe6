"""Pictures on the console, in a real Chromium against the reference model that sees."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.e2e.serving import serving
from tests.http.browser import Tab, browsing, launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LABEL = "Golden Gate Bridge"
#: A file that is dropped, as JavaScript makes it of its bytes, its name and its type.
DROPPED = """([bytes, name, type]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([new Uint8Array(bytes)], name, { type }));
  return dropped;
}"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference model with eyes."""
    errors = tmp_path_factory.mktemp("seeing") / "stderr"
    with serving(errors, "--model", "polyglot-eyes", "--http-port", "0") as server:
        yield f"http://127.0.0.1:{server.ready['http_port']}"


@pytest.fixture
def tab(origin: str) -> Iterator[Tab]:
    """A tab, which must have asked nobody else in the end."""
    with launched() as browser, browsing(browser, origin) as made:
        made.open()
        yield made
        made.check()


def png() -> bytes:
    """A picture of a red arch over blue."""
    drawn, file = Image.new("RGB", (64, 64), "navy"), BytesIO()
    ImageDraw.Draw(drawn).arc((8, 16, 56, 80), 180, 360, "red", 6)
    drawn.save(file, "PNG")
    return file.getvalue()


def drop(tab: Tab, content: bytes, name: str, kind: str) -> None:
    """Drop a file on the place for pictures."""
    transfer = tab.page.evaluate_handle(DROPPED, [list(content), name, kind])
    tab.page.get_by_role("region", name="Pictures").dispatch_event("drop", {"dataTransfer": transfer})


def pictures_sent(requests: list[Any]) -> list[bytes]:
    """The bytes of every picture in the chats that were asked."""
    parts = [
        part
        for request in requests
        if "chat/completions" in request.url
        for message in json.loads(request.post_data)["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    return [b64decode(part["image_url"]["url"].partition("base64,")[2]) for part in parts]


def test_a_dropped_picture_is_asked_about_and_coloured(tab: Tab) -> None:
    requests: list[Any] = []
    tab.page.on("request", lambda request: requests.append(request))
    tab.steer("golden gate bridge", "Watch", LABEL)
    drop(tab, b"no picture", "notes.txt", "text/plain")
    assert "notes.txt is no PNG, JPEG or WebP file." in tab.text(".drop .error:visible")
    drop(tab, png(), "arch.png", "image/png")
    drop(tab, png(), "another.png", "image/png")
    assert tab.page.get_by_role("img", name="arch.png").is_visible()
    tab.field("button", "Remove another.png").click()
    tab.ask("What is this? Tell me more.")
    assert all(answer.inner_text().strip() for answer in tab.page.locator(".answer .tokens").all())
    assert set(pictures_sent(requests)) == {png()}
    tab.field("link", "its tokens").click()
    tab.page.get_by_text("Coloured by").wait_for()
    laid = tab.page.get_by_role("group", name="Pictures, coloured where the feature is read")
    assert "arch.png: at its strongest" in str(laid.locator("canvas").first.get_attribute("aria-label"))
    # Nothing that was drawn has left the tab but to ask: a picture is no address, and none is stored.
    assert all(request.url.startswith(tab.origin) for request in requests)
    assert tab.page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
