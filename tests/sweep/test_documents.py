"""What the documents point at is there: files, links, and tests by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweep.examples import ROOT, documents

#: The documents that are for readers of the code, and so name its files.
OF_THE_CODE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/steering.md")
_ROOMS = ("server", "lab", "clients", "protos", "tests", "examples", "deploy", "docs", "scripts", ".github")
_FILE = re.compile(r"`([\w./*-]+(?:\.(?:py|proto|md|yaml|yml)|/))`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)")
_RUN = re.compile(r"pytest(?: --all)? (tests/[\w./]+)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _paths() -> Iterator[str]:
    for room in _ROOMS:
        for path in (ROOT / room, *(ROOT / room).rglob("*")):
            yield f"/{path.relative_to(ROOT)}" + ("/" if path.is_dir() else "")
    yield from (f"/{path.name}" for path in ROOT.iterdir() if path.is_file())


@pytest.mark.parametrize("name", OF_THE_CODE)
def test_files_that_are_named_are_there(name: str) -> None:
    """By their whole path or by its end, as where a sentence before says in which folder."""
    known = tuple(_paths())
    named = _FILE.findall((ROOT / name).read_text(encoding="utf-8"))
    absent = [
        each for each in named if "*" not in each and not any(path.endswith(f"/{each}") for path in known)
    ]
    assert not absent


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [link for link in _LINK.findall(text) if link and not (path.parent / link).exists()]
    assert not [each for each in _RUN.findall(text) if not (ROOT / each).exists()]
    for file, test in _TEST.findall(text):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)


def test_the_readme_is_short() -> None:
    """Without the tables and answers that scripts/shipped_figures.py writes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = re.sub(r"<!-- figures: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert len(typed.splitlines()) <= 125
