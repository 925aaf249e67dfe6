"""The receipt that `saegis generate --receipt` shows of a server under a policy, on a socket."""

from pathlib import Path

from typer.testing import CliRunner

from saegis_server.cli.app import app
from tests.policy.bundles import write_files
from tests.rpc.harness import running

POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: harm
serial: 1
revision: r1
transparency: {transparency}
match: {{tenants: ["*"]}}
allow:
  - {{id: raw-prompts, uses: [text]}}
rules:
  - id: no-bridge
    reason: Bridges are not spoken of here.
    ban: {{features: [{{sae: first, index: 3}}], strength: 1}}
"""


def receipt(tmp_path: Path, transparency: str) -> str:
    """What is told beside the answer, on one line."""
    files = {"policy.yaml": POLICY.format(transparency=transparency).encode()}
    bundle = write_files(tmp_path / "policy", files)
    with running(policies={"bundles": [str(bundle)]}) as server:
        given = ["generate", "The bridge", "--max-tokens", "4", "--receipt", "--server", server.target]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return " ".join(result.stderr.split())


def test_rules_are_shown_with_what_they_do_to_which_features_and_why(tmp_path: Path) -> None:
    told = receipt(tmp_path, "labels")
    assert "harm/no-bridge" in told
    assert "ban" in told
    assert "Bridges are not spoken of here." in told
    assert "the red bridge" in told
    assert "decision" in told
    fired = told.partition("what fired")[2]
    assert "first:3 the red bridge" in " ".join(fired.split())


def test_where_a_policy_conceals_its_rules_it_is_said_that_there_are_some(tmp_path: Path) -> None:
    told = receipt(tmp_path, "steered")
    assert "the operator's rules" in told
    assert "not told" in told
    assert "no-bridge" not in told
    assert "what fired" not in told
