"""`saegis policy apply | list | history | roll-back` against a server on a socket."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import saegis
from saegis_server.cli.app import app
from tests.policy import made
from tests.policy.bundles import write_files
from tests.rpc.harness import Running, running


@pytest.fixture
def governed(tmp_path: Path) -> Iterator[Running]:
    with running(policies={"state": str(tmp_path / "state")}) as server:
        yield server


def run(server: Running, *arguments: str, code: int = 0) -> str:
    """What the command says, on one line."""
    given = ["policy", *arguments, "--server", server.target]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join((result.stdout + result.stderr).split())


def run_json(server: Running, *arguments: str, code: int = 0) -> Any:
    given = ["policy", *arguments, "--json", "--server", server.target]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def folder(tmp_path: Path, serial: int, **options: str) -> str:
    return str(write_files(tmp_path / f"policy-{serial}", made.files(serial, **options)))


def test_the_way_of_a_policy(governed: Running, tmp_path: Path) -> None:
    assert "no policy is in force" in run(governed, "list")
    one, two = folder(tmp_path, 1), folder(tmp_path, 2, extra="transparency: steered")
    told = run(governed, "apply", one)
    digest = made.bundle(1).digest
    assert "harm: new -> r1 (serial 1) + rules.ban-1" in told
    assert f"in force: harm@r1, digest {digest[:12]}" in told
    dry = run(governed, "apply", two, "--dry-run")
    assert "harm: r1 (serial 1) -> r2 (serial 2)" in dry
    assert "~ description - rules.ban-1 + rules.ban-2 ~ transparency" in dry
    assert "in force:" not in dry
    beside = run(governed, "apply", two, "--shadow")
    assert "beside the revision in force: harm@r2" in beside
    listed = run(governed, "list")
    assert "r1" in listed
    assert "candidate" in listed
    told = run_json(governed, "apply", two)["policy"]
    assert (told["active"]["serial"], told["shadow"]) == (2, None)
    back = run(governed, "roll-back", "harm", digest[:8])
    assert f"in force: harm@r1, serial 1, digest {digest[:12]}" in back
    revisions = run_json(governed, "history", "harm")["revisions"]
    assert [(each["serial"], each["active"]) for each in revisions] == [(2, False), (1, True)]
    shown = run(governed, "history", "harm")
    assert shown.index("r2") < shown.index("r1")
    assert "no rule, allowance, limit or protection changes" in run(governed, "apply", one)


def test_a_bundle_that_the_server_does_not_take_changes_nothing(governed: Running, tmp_path: Path) -> None:
    run(governed, "apply", folder(tmp_path, 1))
    wrong = folder(tmp_path, 2, target="{sae: first, index: 4800}")
    told = run(governed, "apply", wrong, code=1)
    assert "policy.yaml:10" in told
    assert "4800" in told
    assert "nothing was changed" in told
    assert run_json(governed, "apply", wrong, code=1)["valid"] is False
    with saegis.Client(governed.target) as client:
        assert client.list_policies().policy_revision == "harm@r1"


def test_a_folder_that_is_no_bundle_is_told_before_the_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    given = ["policy", "apply", str(tmp_path / "policy"), "--server", "127.0.0.1:1"]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "policy.yaml: is missing" in result.stderr


def test_what_is_not_there_is_told(governed: Running) -> None:
    assert "no policy 'harm' is in force" in run(governed, "history", "harm", code=1)
    assert "no policy 'harm' is in force" in run(governed, "roll-back", "harm", "0" * 8, code=1)


def test_a_server_without_policies_says_so(tmp_path: Path) -> None:
    with running() as server:
        assert "saegis serve --policy" in run(server, "apply", folder(tmp_path, 1), code=1)
