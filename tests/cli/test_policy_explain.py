"""`saegis policy explain`: a bundle by itself offline, and the policies of a server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saegis_server.cli.app import app
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import Labels
from tests.directions.files import safetensors, vector
from tests.policy.bundles import write_files
from tests.rpc import tiny
from tests.rpc.harness import running

POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: p
serial: 1
revision: r1
match: {tenants: [acme], models: [tiny]}
rules:
  - id: no-poison
    reason: It is harmful.
    ban: {features: [{sae: first, index: 7}], strength: 2}
  - id: less-river
    mode: audit
    cap: {features: [{sae: first, label: a river}], value: 1}
allow:
  - {id: style, ops: [clamp], features: [{sae: first, index: 3}], max: 2, unit: max_activation}
"""
FREE = POLICY[: POLICY.index("allow:")] + "allow: [{id: any, ops: [clamp, scale, add, cap]}]\n"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The SAE `first` of the tiny server in a folder, and the bundles `policy` and `free`."""
    save_sae(tiny.sae("first", 1), tmp_path / "first")
    Labels(tiny.LABELS).save(tmp_path / "first")
    write_files(tmp_path / "policy", {"policy.yaml": POLICY.encode()})
    write_files(tmp_path / "free", {"policy.yaml": FREE.encode()})
    return tmp_path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = write_files(tmp_path_factory.mktemp("served") / "policy", {"policy.yaml": POLICY.encode()})
    with running(policies={"bundles": [str(bundle)], "unmatched": "warn"}) as server:
        yield server.target


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["policy", "explain", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def offline(world: Path, *arguments: str, bundle: str = "policy", code: int = 0) -> str:
    known = ("--sae", str(world / "first"), "--site", str(tiny.FIRST_SITE), "--name", "tiny")
    return invoke(str(world / bundle), *known, "--tenant", "acme", *arguments, code=code)


def test_a_redirect_is_asked_for_and_explained(world: Path) -> None:
    target = "to: {feature: {sae: first, index: 3}}"
    rule = f"  - {{id: away, redirect: {{features: [{{sae: first, index: 8}}], {target}, factor: 2}}}}\n"
    redirecting = f"{POLICY[: POLICY.index('allow:')]}{rule}allow: [{{id: style, ops: [redirect], max: 2}}]\n"
    write_files(world / "away", {"policy.yaml": redirecting.encode()})
    told = offline(world, "--redirect", "4=6:1", bundle="away")
    assert "  p/away: redirect of twins, in force\n" in told
    assert f"  at {tiny.FIRST_SITE}: 1 own edits, 1 rules, 1 bans\n" in told
    told = offline(world, "--redirect", "4=the red bridge:1", bundle="away")
    assert "denied by p/away at steering.edits[0]: a rule redirects to this\n" in told
    told = offline(world, "--redirect", "5=7:1max:3", bundle="away")
    assert "denied by p/no-poison at steering.edits[0]: this feature is banned\n" in told
    assert "denied by p/allow at steering.edits[0]: a strength of 3 is not in the range of style" in told
    told = offline(world, "--redirect", "4=99:1", bundle="away", code=2)
    assert "steering.edits[0].redirect.feature.index" in told


def test_a_bundle_is_explained_without_a_server(world: Path) -> None:
    lines = offline(world, "--clamp", "the red bridge=1.5max").splitlines()
    assert lines[:4] == [
        "allowed under p@r1",
        "  p/less-river: cap of a river, recorded only (audit)",
        "  p/no-poison: ban of poison, in force: It is harmful.",
        f"  at {tiny.FIRST_SITE}: 1 own edits, 1 bans",
    ]
    assert lines[4].startswith("  program ")
    told = offline(world, "--clamp", "3=3max", "--add", "7=1")
    assert told.startswith("denied under p@r1\n")
    assert "  denied by p/no-poison at steering.edits[1]: this feature is banned\n" in told
    assert "denied by p/allow at steering.edits[0]: 3 in unit max_activation is not in the range" in told
    assert invoke(str(world / "policy"), "--sae", str(world / "first"), "--site", str(tiny.FIRST_SITE)) == (
        "denied: no policy matches\n  denied by match: no policy in force concerns this request\n"
    )


def test_what_goes_beyond_the_ordinary_is_explained(world: Path, target: str) -> None:
    at = ("--server", target, "--tenant", "acme")
    asked = ("--use", "text", "--use", "n=4", "--use", "temperature=1")
    for told in (offline(world, *asked), invoke(*at, *asked)):
        assert "the policy does not allow the use text" in told
        assert "the policy does not allow the use n above 1" in told
        assert "temperature" not in told
    assert "--use 'n' is no use" in offline(world, "--use", "n", code=2)


def test_a_server_explains_what_is_in_force_and_a_bundle(world: Path, target: str) -> None:
    at = ("--server", target, "--tenant", "acme", "--sae-id", "first")
    mine = json.loads(offline(world, "--clamp", "3=1max", "--json"))
    theirs = json.loads(invoke(*at, "--clamp", "3=1max", "--json"))
    assert mine["allowed"] is theirs["allowed"] is True
    for name in ("policy_revision", "denials", "would_deny", "rules"):
        assert theirs[name] == mine[name]
    # A server tells its program by the digest alone.
    assert len(theirs["program_digest"]) == 64
    told = [line for line in mine["lines"] if not line.startswith(("  at ", "  program "))]
    assert theirs["lines"] == [*told, f"  program {theirs['program_digest'][:16]}"]
    for edits in (("--clamp", "3=9max"), ("--cap", "7=1", "--scale", "5=0.5"), ("--ban", "5")):
        mine, theirs = json.loads(offline(world, *edits, "--json")), json.loads(invoke(*at, *edits, "--json"))
        assert theirs == mine
        assert (mine["allowed"], mine["program_digest"]) == (False, "")
        assert mine["denials"]
    assert json.loads(invoke(*at, "--cap", "5=1", "--json"))["allowed"] is False
    beside = invoke(str(world / "free"), *at, "--cap", "5=1")
    assert beside.startswith("allowed under p@r1\n")
    # Without a tenant it is the caller's.
    assert "no policy matches" in invoke("--server", target)


def test_the_server_of_the_environment_is_asked_where_no_bundle_is_named(
    world: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEGIS_SERVER", target)
    assert invoke("--tenant", "acme").startswith("allowed under p@r1\n")
    monkeypatch.setenv("SAEGIS_SERVER", "127.0.0.1:1")
    assert offline(world).startswith("allowed under p@r1\n")
    assert "is a server running at 127.0.0.1:1?" in " ".join(invoke("--timeout", "2", code=1).split())


def test_roles_are_those_named(world: Path) -> None:
    text = POLICY.replace("models: [tiny]", "models: [tiny], roles: [operate]")
    write_files(world / "policy", {"policy.yaml": text.encode()})
    assert offline(world).startswith("denied: no policy matches")
    assert offline(world, "--role", "use", "--role", "operate").startswith("allowed under p@r1\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--clamp", "3"), "'3' has no value"),
        (("--clamp", "480=1"), "features 0 to 47"),
        (("--clamp", "no such label=1"), "no feature labelled"),
        (("--clamp", "10=2max"), "no largest activation is recorded"),
        (("--scale", "3=1e30"), "must lie between"),
        (("--clamp", "3=1", "--ban", "3"), "bans what the other one edits"),
        (("--sae-id", "second", "--clamp", "3=1"), "no SAE 'second' is loaded"),
    ],
)
def test_edits_that_no_server_would_take_are_refused(
    world: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in " ".join(offline(world, *arguments, code=2).split())


def test_what_is_no_bundle_is_told(world: Path) -> None:
    assert "is no bundle" in offline(world, bundle="first", code=1)
    assert Bundle.read(world / "free").policy.name == "p"
    told: Any = offline(world, bundle="nowhere", code=1)
    assert "cannot be read" in told


def test_a_direction_that_is_shipped_can_be_named(world: Path) -> None:
    (world / "free" / "policy.yaml").write_text(FREE.replace("ops: [clamp", "directions: true, ops: [clamp"))
    shipped = world / "calm.safetensors"
    shipped.write_bytes(safetensors(vector(), site=str(tiny.FIRST_SITE)))
    asked = ("--add", "direction:calm=2", "--json")
    assert json.loads(offline(world, *asked, "--directions", str(shipped), bundle="free"))["allowed"]
    refused = offline(world, *asked, bundle="free", code=2)
    assert "no direction 'calm' is kept" in " ".join(refused.split())
