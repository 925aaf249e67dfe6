"""Every example of the project, collected: from its documents, the commands' help, docstrings and hints."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

import typer

from saegis_lab.cli.app import app

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "clients/python/saegis", ROOT / "server/saegis_server", ROOT / "lab/saegis_lab")
#: In two columns what is said of an example stands behind two spaces or more.
_REMARK = re.compile(r"\s{2,}[^\s\"'-].*$")
_INDENTED = re.compile(r"(?:^|\n\n)((?:    .*\n?|\n(?=    ))+)")
_MENTION = re.compile(
    r"(?<!import )(?<!from )(?<![\w./-])saegis((?: (?!saegis)[a-z][a-z-]*)+)((?: --?[a-z][\w-]*)*)"
)


@dataclass(frozen=True, slots=True)
class Example:
    """One example. where: the file or command that shows it."""

    where: str
    text: str

    def __str__(self) -> str:
        return " ".join(self.arguments)

    @property
    def arguments(self) -> list[str]:
        """Of a command of ours, its arguments: without redirections and what runs in the background."""
        words = shlex.split(self.text, comments=True)
        for place, word in enumerate(words):
            if word in (">", "2>>", "&", "|"):
                words = words[:place]
                break
        return words[1:]

    @property
    def output(self) -> str:
        """The file that its standard output goes to; empty if none."""
        words = shlex.split(self.text, comments=True)
        return words[words.index(">") + 1] if ">" in words else ""


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """All commands and groups of the command line, by their words."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found[words] = command
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def of_help() -> Iterator[Example]:
    """The commands that the commands' help shows."""
    for words, command in commands().items():
        for paragraph in _paragraphs(command.epilog or ""):
            if paragraph.startswith("saegis "):
                yield Example(" ".join(("saegis", *words, "--help")), _REMARK.sub("", paragraph))


def json_of_help() -> Iterator[Example]:
    """The lines of JSON that the commands' help shows."""
    for words, command in commands().items():
        for paragraph in _paragraphs(command.epilog or ""):
            for text in re.findall(r"\{\"(?:[^{}]|\{[^{}]*\})*\}", paragraph):
                yield Example(" ".join(("saegis", *words, "--help")), text)


def in_chat() -> Iterator[Example]:
    """The lines for a chat that its helps show."""
    from saegis.cli.chat_session import COMMANDS

    texts = [*_paragraphs(commands()["chat",].epilog or ""), *COMMANDS.values()]
    for text in texts:
        for found in re.findall(r"/[a-z]+(?: [^,/]+?)?(?=$|,|\s{2,})", text):
            yield Example("saegis chat --help", found)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        yield " ".join(line.strip() for line in paragraph.strip().splitlines())


def documents() -> list[Path]:
    """The documents, wherever they lie, but those of what is installed."""
    found = [path.relative_to(ROOT) for path in ROOT.glob("**/*.md")]
    return sorted(ROOT / path for path in found if not path.parts[0].startswith("."))


def blocks(kind: str) -> Iterator[Example]:
    """The blocks of a kind, such as python, in the documents."""
    for path in documents():
        for found in re.findall(rf"```{kind}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            yield Example(str(path.relative_to(ROOT)), found)


def programs() -> list[Path]:
    """The programs that a reader may copy."""
    return sorted((ROOT / "examples").glob("*.py"))


def of_documents() -> Iterator[Example]:
    """The lines for a shell in the documents, continued ones joined."""
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            text = " ".join(shlex.split(line, comments=True)) if "saegis" not in line else line.strip()
            if text and not text.startswith("#"):
                yield Example(block.where, text)


def of_docstrings() -> Iterator[Example]:
    """The indented blocks of docstrings that are Python: those that call something."""
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for block in _INDENTED.findall(ast.get_docstring(node) or ""):
                    if _calls(block):
                        yield Example(str(path.relative_to(ROOT)), dedent(block))


def _calls(block: str) -> bool:
    try:
        tree = ast.parse("async def f():\n" + block)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def mentions() -> Iterator[Example]:
    """Commands that messages, hints, docstrings and documents name, with the options behind them."""
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from _mentions(str(path.relative_to(ROOT)), node.value)
    for path in documents():
        for code in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")):
            yield from _mentions(str(path.relative_to(ROOT)), code)


def _mentions(where: str, text: str) -> Iterator[Example]:
    for found in _MENTION.finditer(" ".join(text.split())):
        yield Example(where, found[0])


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if "_pb2" not in path.name:
                yield path
