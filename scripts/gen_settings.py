"""Write the settings of `saegis serve` into docs/configuration.md, or with --check tell if it is current."""

import argparse
import enum
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import typer.main

from saegis_server.cli.app import app
from saegis_server.cli.serve.settings import declared, key

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/configuration.md"
_BEGIN, _END = "<!-- settings: written by scripts/gen_settings.py -->\n", "<!-- end of settings -->"


def current(text: str) -> str:
    """The document with the settings as they are declared. Raises ValueError if it has no place for them."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT} has no place for the table")
    return f"{before}{begin}\n{_tables()}\n{end}{after}"


def _tables() -> str:
    command: Any = typer.main.get_command(app)
    options = declared(command.commands["serve"])
    parts = []
    for panel, group in groupby(options, key=lambda option: option.rich_help_panel or "What is served"):
        rows = [f"| `{key(each)}` | {_form(each)} | {_default(each)} | {each.help} |" for each in group]
        parts.append(
            "\n".join([f"### {panel}", "", "| key | value | default | |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _form(option: Any) -> str:
    """How a value is written."""
    kind = option.type_descriptor.annotation
    kind = (get_args(kind) or (kind,))[0]
    if option.metavar is not None:
        form = f"`{option.metavar}`".replace("|", "\\|")
        return f"{form}, or several" if option.multiple else form
    if issubclass(kind, enum.Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    if kind is bool:
        return "`true`, `false`"
    bounds = f"{_number(option.min)} to {_number(option.max)}" if option.max is not None else ""
    return bounds or (f"from {_number(option.min)}" if option.min is not None else "a number")


def _number(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _default(option: Any) -> str:
    default = option.default
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default.value if isinstance(default, enum.Enum) else default}`"


def main() -> int:
    """Write or check the document; 1 if a check finds it out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether the table is current")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = current(text)
    if not check:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        print(f"{DOCUMENT} is out of date: run scripts/gen_settings.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
