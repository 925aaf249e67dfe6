"""The console's files: what they are sent with, that they name nobody else, and that they may do little."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from saegis_server.http.console.files import POLICY, PREFIX, WEB
from saegis_server.rpc.server.config import ServerConfig
from tests.http.conftest import url_of
from tests.rpc.harness import Running
from tests.tools import node_file, program

FILES = sorted(path for path in WEB.rglob("*") if path.is_file())
MODULES = [path for path in FILES if path.suffix == ".js"]
#: Ways in which a text becomes markup or code, or a style stands within the page.
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|"
    r"DOMParser|createContextualFragment|setAttribute\(.style|localStorage|document\.cookie"
)


class _Page(HTMLParser):
    """What a page has in it of scripts, styles and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.addresses: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the addresses, and note what acts within the page."""
        self._within = tag
        self.inline += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        """Note code and styles within the page."""
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave the element."""
        self._within = ""


@pytest.fixture
def browser(served: Running) -> Iterator[httpx.Client]:
    """Asks as a browser does."""
    with httpx.Client(base_url=url_of(served)) as client:
        yield client


def test_every_file_is_sent_as_it_lies_and_may_do_little(browser: httpx.Client) -> None:
    for path in FILES:
        name = path.relative_to(WEB).as_posix()
        told = browser.get("/" if name == "index.html" else f"{PREFIX}/{name}")
        assert told.status_code == 200, name
        assert told.content == path.read_bytes()
        assert told.headers["content-security-policy"] == POLICY
        assert told.headers["x-content-type-options"] == "nosniff"
        assert told.headers["x-frame-options"] == "DENY"
    assert "unsafe" not in POLICY
    assert "frame-ancestors 'none'" in POLICY
    assert "default-src 'none'" in POLICY


def test_what_the_browser_has_is_not_sent_again(browser: httpx.Client) -> None:
    first = browser.get(f"{PREFIX}/main.js")
    again = browser.get(f"{PREFIX}/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("path", ["../files.py", "%2e%2e/files.py", "pages/", "", "index.html", "main.js/.."])
def test_no_path_leads_to_anything_else(browser: httpx.Client, path: str) -> None:
    told = browser.build_request("GET", f"{url_of_client(browser)}{PREFIX}/x")
    told.url = told.url.copy_with(raw_path=f"{PREFIX}/{path}".encode())
    assert browser.send(told).status_code == 404


def url_of_client(client: httpx.Client) -> str:
    """The origin that a client asks."""
    return str(client.base_url).rstrip("/")


def test_nothing_acts_within_the_page_and_all_addresses_are_its_own() -> None:
    page = _Page()
    page.feed((WEB / "index.html").read_text(encoding="utf-8"))
    assert not page.inline
    assert page.addresses
    for address in page.addresses:
        assert address.startswith((f"{PREFIX}/", "#"))
        if address.startswith(PREFIX):
            assert (WEB / address.removeprefix(f"{PREFIX}/")).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_origin(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\b(?:https?|wss?):|\burl\(|@import|//\w+\.", text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_makes_no_code_of_texts_and_imports_what_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SINKS.search(text)
    assert text.startswith("/**"), "it opens with what it is"
    for name in re.findall(r'^(?:import|export) .*?from "([^"]+)";', text, re.MULTILINE | re.DOTALL):
        assert name.startswith(".")
        assert (path.parent / name).resolve().is_file(), name


@pytest.mark.slow
def test_the_modules_types_fit() -> None:
    """The types in comments, by TypeScript's checker, which writes nothing."""
    options = (
        "--noEmit --allowJs --checkJs --strict --target es2022 --module es2022 --moduleResolution bundler"
    )
    command = [
        program("node"),
        str(node_file("typescript", "bin/tsc")),
        *options.split(),
        "--lib",
        "es2022,dom,dom.iterable",
        str(WEB / "main.js"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_is_off_beyond_this_machine_unless_asked_for(tmp_path: Path) -> None:
    who = tmp_path / "identities.yaml"

    def has(host: str, console: str) -> bool:
        settings = {"http_port": 0, "http_host": host, "identities": who, "console": console}
        return ServerConfig.model_validate({"model": "tiny", **settings}).has_console

    assert has("127.0.0.1", "auto")
    assert not has("127.0.0.1", "never")
    assert not has("0.0.0.0", "auto")  # noqa: S104 - it is what is tried
    assert has("0.0.0.0", "always")  # noqa: S104
    with pytest.raises(ValueError, match="console: nothing is served over HTTP"):
        ServerConfig.model_validate({"model": "tiny", "console": "always"})
