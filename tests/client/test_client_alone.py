"""The client's distribution by itself: what asks a server needs nothing of the server, and says what does."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from saegis.cli.family import Family
from saegis_lab.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients/python"
#: Imports every module of the client and runs the command line where nothing of the server can be imported.
ALONE = """
import importlib, pkgutil, sys

class Blocked:
    names = {
        *("saegis_server", "saegis_lab", "torch", "transformers"),
        *("numpy", "yaml", "matplotlib", "prometheus_client"),
    }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not part of the client", name=name)

sys.meta_path.insert(0, Blocked())
import saegis

for module in pkgutil.walk_packages(saegis.__path__, "saegis."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from saegis.cli.app import app

sys.argv[0] = "saegis"
app()
"""


def alone(*arguments: str, code: int = 0) -> str:
    """What the command says where only the client is installed, on one line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-c", ALONE, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return " ".join((done.stdout + done.stderr).split())


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_commands_that_ask_a_server_work_without_it() -> None:
    told = alone("--help")
    for name in ("generate", "chat", "inspect", "features", "directions", "policy"):
        assert f" {name} " in told
    assert "serve, demo, bench, eval, train, sae, config, audit, token: pip install saegis-server" in told
    refused = alone("generate", "x", "--server", "127.0.0.1:1", "--timeout", "1", code=1)
    assert "is a server running at 127.0.0.1:1?" in refused


def test_a_command_of_the_server_says_what_to_install() -> None:
    told = alone("policy", "validate", "x", code=2)
    assert "saegis policy validate is a command of the server, which is not installed" in told
    assert "pip install saegis-server" in told


def test_with_the_server_every_family_is_whole() -> None:
    def families(command: Any) -> list[Family]:
        found = [command] if isinstance(command, Family) else []
        below = command.commands.values() if isinstance(command, TyperGroup) else ()
        return found + [family for each in below for family in families(each)]

    found = families(typer.main.get_command(app))
    assert len(found) == 4
    for family in found:
        assert set(family.commands) == set(family.names)


def test_the_client_imports_what_it_declares_and_nothing_of_the_server() -> None:
    known = {*sys.stdlib_module_names, "saegis", "grpc", "google", "typer", "rich"}
    for path in sorted((CLIENT / "saegis").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= known, path


def test_two_distributions_have_one_version_and_the_client_is_small() -> None:
    client, server = project(CLIENT), project(ROOT)
    assert (client["project"]["name"], server["project"]["name"]) == ("saegis", "saegis-server")
    for each, folder in ((client, CLIENT), (server, ROOT)):
        assert "version" in each["project"]["dynamic"]
        assert (folder / each["tool"]["hatch"]["version"]["path"]).resolve() == CLIENT / "saegis/version.py"
    assert len(client["project"]["dependencies"]) <= 4
    size = sum(path.stat().st_size for path in (CLIENT / "saegis").rglob("*") if path.suffix != ".pyc")
    assert size < 2**20
