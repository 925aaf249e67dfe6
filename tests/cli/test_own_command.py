"""The form in which messages name further commands: the shell must find it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import saegis
from saegis.cli.connection import advice
from saegis.cli.output import own_command
from saegis.errors import FieldViolation
from saegis_server.cli.serve.start_errors import start_failed


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed `saegis` in an environment of its own, off PATH, that runs; it says "here"."""
    path = tmp_path / "my env" / "bin" / "saegis"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho here $1\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(path), "demo"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return path


def typed(command: str) -> str:
    """What the shell prints for the command."""
    return subprocess.run(["sh", "-c", f"{command} serve"], capture_output=True, text=True, check=True).stdout


def test_it_is_the_relative_path_where_the_shell_does_not_find_it(script: Path) -> None:
    assert own_command() == "'my env/bin/saegis'"
    assert typed(own_command()) == "here serve\n"


def test_beside_it_the_name_alone_would_not_do(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    assert own_command() == "./saegis"
    assert typed(own_command()) == "here serve\n"


def test_it_is_the_name_alone_where_the_shell_finds_this_one(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    assert own_command() == "saegis"


def test_another_of_that_name_on_the_path_is_not_meant(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "saegis"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:/usr/bin:/bin")
    assert typed(own_command()) == "here serve\n"


def test_it_is_the_whole_path_where_the_current_folder_is_gone(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert own_command() == f"'{script}'"


def test_as_a_module_it_is_the_script_beside_this_python(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli/__main__.py", "demo"])
    monkeypatch.setattr(sys, "executable", str(script.parent / "python3"))
    assert typed(own_command()) == "here serve\n"
    script.unlink()
    monkeypatch.setitem(sys.modules, "saegis_server.cli", ModuleType("saegis_server.cli"))
    assert own_command().endswith("python3' -m saegis_server.cli")
    monkeypatch.delitem(sys.modules, "saegis_server.cli")
    assert own_command().endswith("python3' -m saegis.cli")


def test_hints_name_the_command_that_runs(script: Path) -> None:
    assert "Start one with ''my env/bin/saegis' serve'" in advice(saegis.Unavailable("down"), "host:1")
    no_feature = saegis.NotFound("gone", violations=[FieldViolation("steering.edits[0].feature", "none")])
    assert "'my env/bin/saegis' features search WORDS" in advice(no_feature, "host:1")
    failed = start_failed(ValueError("wrong"))
    assert failed is not None
    assert failed[1].startswith("'my env/bin/saegis' serve --help")
