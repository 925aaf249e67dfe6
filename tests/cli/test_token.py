"""Tests of `saegis token new`, of how commands get a token, and of a command against a guarded server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from saegis_server.cli.app import app
from saegis_server.rpc.auth.identities import read_identities
from saegis_server.rpc.auth.principals import new_token, token_digest
from saegis_server.rpc.auth.roles import Role
from tests.rpc.harness import Running, running

HEAD = "apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n"
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: str, token: str = "") -> Result:
    return CliRunner().invoke(app, arguments, env={**PLAIN, "SAEGIS_TOKEN": token or None})


def test_the_entry_is_one_by_which_a_server_knows_the_token(tmp_path: Path) -> None:
    made = run("token", "new", "--principal", "alice", "--tenant", "123", "--role", "steer", "--role", "use")
    assert made.exit_code == 0
    token = made.stdout.strip()
    assert token not in made.stderr
    path = tmp_path / "identities.yaml"
    path.write_text(HEAD + made.stderr, encoding="utf-8")
    known = read_identities(path).of_token(token)
    assert known is not None
    assert (known.name, known.tenant, known.roles) == ("alice", "123", frozenset((Role.USE, Role.STEER)))


def test_json_has_the_token_and_the_entry() -> None:
    first, second = (json.loads(run("token", "new", "--json").stdout) for _ in range(2))
    digest = token_digest(first["token"])
    assert first["principal"] == {
        "name": f"principal-{digest[:8]}",
        "tenant": "default",
        "roles": ["use"],
        "token_sha256": digest,
    }
    assert first["token"] != second["token"]


def test_the_entry_of_the_help_is_an_entry() -> None:
    shown = run("token", "new", "--help").output
    start = shown.index("apiVersion")
    lines = [line[1:].rstrip() for line in shown[start - 1 :].splitlines()]
    example = yaml.safe_load("\n".join(lines[: next(i for i, line in enumerate(lines) if "..." in line) + 1]))
    assert example["principals"][0]["roles"] == ["use", "steer"]


@pytest.mark.parametrize("option", ["--principal", "--tenant"])
def test_names_that_logs_could_not_hold_are_refused(option: str) -> None:
    refused = run("token", "new", option, "a b")
    assert refused.exit_code == 2
    assert f"{option} must be" in refused.stderr
    assert refused.stdout == ""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    folder = tmp_path_factory.mktemp("guarded")
    token = new_token()
    path = folder / "identities.yaml"
    path.write_text(
        f"{HEAD}  - {{name: a, tenant: t, roles: [inspect], token_sha256: {token_digest(token)}}}\n",
        encoding="utf-8",
    )
    with running(identities=path) as server:
        yield server, token


def test_commands_take_a_token_from_a_file_or_the_environment(
    guarded: tuple[Running, str], tmp_path: Path
) -> None:
    server, token = guarded
    search = ("features", "search", "bridge", "--server", server.target)
    file = tmp_path / "a.token"
    file.write_text(f"{token}\n", encoding="utf-8")
    assert run(*search, token=token).exit_code == 0
    assert run(*search, "--token-file", str(file)).exit_code == 0
    # A file that is named counts more than what the environment holds by chance.
    assert run(*search, "--token-file", str(file), token=new_token()).exit_code == 0
    for refused in (run(*search), run(*search, token=new_token())):
        assert refused.exit_code == 1
        assert "--token-file" in refused.stderr
    lacking = run("generate", "x", "--server", server.target, token=token)
    assert lacking.exit_code == 1
    assert "needs the role 'use'" in lacking.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b" \n", "holds no token"),
        (b"two words", "holds no token"),
        (b"\xff", "not ASCII"),
    ],
)
def test_a_token_file_of_no_use_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "a.token"
    if content is not None:
        file.write_bytes(content)
    refused = run("inspect", "x", "--token-file", str(file))
    assert refused.exit_code == 2
    assert "a.token" in refused.stderr
    assert told in refused.stderr


def test_identities_of_no_use_stop_the_start_before_the_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "identities.yaml"
    path.write_text(HEAD + "  - name: alice\n", encoding="utf-8")
    told = run("serve", "--model", "nowhere", "--port", "0", "--identities", str(path))
    assert told.exit_code == 1
    assert f"{path}:4: principals[0].tenant: is missing" in told.stderr
    assert "saegis token new --help" in told.stderr


def test_a_server_for_others_needs_identities() -> None:
    told = run("serve", "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert told.exit_code == 2
    assert "saegis token new" in told.stderr
