"""Tests of the help, and of what a command loads before it does anything."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from saegis.version import __version__
from saegis_lab.cli.app import app

COMMANDS = (
    ("serve",),
    ("demo",),
    ("generate",),
    ("chat",),
    ("inspect",),
    ("features", "search"),
    ("features", "contrast"),
    ("features", "show"),
    ("features", "label"),
    ("features", "choose"),
    ("features", "import"),
    ("eval", "coverage"),
    ("policy", "validate"),
    ("policy", "test"),
    ("policy", "diff"),
    ("policy", "explain"),
    ("policy", "calibrate"),
    ("policy", "sign"),
    ("policy", "keygen"),
    ("policy", "apply"),
    ("policy", "list"),
    ("policy", "history"),
    ("policy", "roll-back"),
    ("sae", "info"),
    ("sae", "check"),
    ("sae", "convert"),
    ("sae", "list"),
    ("config", "check"),
    ("config", "show"),
    ("token", "new"),
)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_teaches_by_examples(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert "Examples" in shown
    assert f"saegis {' '.join(command)}" in shown.split("Examples")[1]


def test_the_help_lists_every_command() -> None:
    shown = run("--help")
    for command in COMMANDS:
        assert f" {command[0]} " in shown


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_examples_are_accepted_by_the_parser(command: tuple[str, ...]) -> None:
    """Every example of the help names options that the command has."""
    shown = run(*command, "--help")
    options, examples = shown.split("Examples", 1)
    used = {word for word in examples.split() if word.startswith("--") and word.strip("-.,;").isascii()}
    for word in used:
        assert word.rstrip(".,;") in options, word


def test_the_version_is_told() -> None:
    assert run("--version").strip() == f"saegis {__version__}"


def test_help_and_client_commands_do_not_load_torch() -> None:
    """A refused connection is as far as `generate` goes here: by then all that it needs is loaded."""
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from saegis_lab.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "result = CliRunner().invoke(app, ['generate', 'x', '--server', '127.0.0.1:1', '--timeout', '1'])\n"
        "assert result.exit_code == 1, result.output\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
