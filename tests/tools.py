"""What some tests drive and the project itself does not need: a browser, other clients, checkers.

`make tools` installs it, most of it into `.venv/tools`. A test whose tool is missing is skipped, and with
`pytest --tools` it fails: what must pass before a change is taken runs every test.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest

#: Where `make tools` puts what is not of the system; the variable TEST_TOOLS names another folder.
FOLDER = Path(os.environ.get("TEST_TOOLS") or f"{sys.prefix}/tools")
#: Whether a missing tool fails a test. Set by conftest.py before any test is read.
required = False


def missing(what: str) -> NoReturn:
    """End a test that cannot do without something: skipped, or failed where all tools must be there."""
    told = f"{what} is missing: make tools"
    if required:
        pytest.fail(told, pytrace=False)
    pytest.skip(told)


def found(*names: str) -> str | None:
    """The path of the first of some programs that is on the PATH or among the tools."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(FOLDER / "bin")])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def program(*names: str) -> str:
    """The path of a program under one of its names; ends the test without one."""
    return found(*names) or missing(names[0])


def other_python() -> str:
    """The Python of the environment that has the clients of other projects; ends the test without one."""
    python = FOLDER / "bin" / "python"
    return str(python) if python.exists() else missing("the environment of other clients")


def node_file(package: str, name: str) -> Path:
    """A file of a package of npm; ends the test without it."""
    path = FOLDER / "node_modules" / package / name
    return path if path.is_file() else missing(f"{package} of npm")


def original(module: str) -> Any:
    """A module of a library whose files and numbers ours are compared with; ends the test without it."""
    if (folder := str(FOLDER / "originals")) not in sys.path:
        sys.path.append(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        missing(f"{module} ({error})")
