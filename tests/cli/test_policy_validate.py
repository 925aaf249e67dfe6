"""`saegis policy validate` on an SAE in a folder, and on the one that ships."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saegis_server.cli.app import app
from saegis_server.directions.files import read_file
from saegis_server.directions.store import KeptDirection
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import load_private_key, public_path, sign, write_new_key
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import FeatureLabel, Labels
from tests.cli.offline_world import sae
from tests.engine.tiny import WIDTH
from tests.policy.bundles import CASES, POLICY, bundle_files, direction, write_files

LABELS = Labels(
    [
        FeatureLabel(3, "style", max_activation=2.0),
        FeatureLabel(5, "a river", max_activation=2.0),
        FeatureLabel(7, "poison", precision=0.9, max_activation=3.0, harmful=True),
    ]
)


def good_files() -> dict[str, bytes]:
    """A bundle for the tiny SAE: its features are the axes, so one direction of ones touches all."""
    return {**bundle_files(), "directions/calm.safetensors": direction(WIDTH)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    save_sae(sae(), tmp_path / "sae")
    LABELS.save(tmp_path / "sae")
    write_files(tmp_path / "policy", good_files())
    return tmp_path


def run(world: Path, *arguments: str, code: int = 0, path: str = "policy") -> str:
    """Standard output of the command, on one line."""
    given = ["policy", "validate", str(world / path), *arguments]
    if "--sae" not in arguments:
        given += ["--sae", str(world / "sae")]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.stdout.split()) if code < 2 else " ".join(result.stderr.split())


def run_json(world: Path, *arguments: str, code: int = 0, path: str = "policy") -> Any:
    return json.loads(run(world, *arguments, "--json", code=code, path=path))


def test_directions_that_the_server_ships_are_named(world: Path) -> None:
    shipped = world / "calm.safetensors"
    shipped.write_bytes(direction(WIDTH))
    digest = KeptDirection.of(read_file(shipped, WIDTH).vector).digest
    policy = world / "policy" / "policy.yaml"
    text = policy.read_text()
    assert "file: directions/calm.safetensors" in text
    policy.write_text(text.replace("file: directions/calm.safetensors", f"digest: {digest}"))
    assert "valid: acme.base@2026.1" in run(world, "--directions", str(shipped))
    assert "ships no direction of this digest" in run(world, code=1)
    shipped.write_bytes(b"x")
    told = run(world, "--directions", str(shipped), code=2)
    assert "a direction cannot be read" in told
    assert "calm.safetensors" in told


def test_a_good_bundle_is_valid_as_a_folder_and_as_an_archive(world: Path) -> None:
    told = run(world)
    digest = Bundle.from_files(good_files()).digest
    assert f"valid: acme.base@2026.1, serial 3, digest {digest[:12]}; 3 rules, 2 cases passed" in told
    (world / "policy.tar.gz").write_bytes(Bundle.from_files(good_files()).archive())
    assert run(world, path="policy.tar.gz") == told
    report = run_json(world)
    assert (report["valid"], report["problems"]) == (True, [])
    assert report["policy"] == {
        "name": "acme.base",
        "serial": 3,
        "revision": "2026.1",
        "digest": digest,
        "signed_by": "",
    }
    assert report["cases"] == [
        {"name": name, "passed": True, "failures": []} for name in ("no edits", "another tenant")
    ]


def test_every_kind_of_fault_has_its_file_and_line(world: Path) -> None:
    policy = world / "policy" / "policy.yaml"
    for old, new, line, told in (
        ("kind: Policy", "kind: Policy\nkind: Policy", 3, "the key 'kind' stands in line 2 already"),
        ("strength: 2", "strenght: 2", 16, "did you mean 'strength'?"),
        ("index: 7", "index: 700", 10, "features 0 to 47, not 700"),
        ("label: poison", "label: poisn", 17, "no feature labelled 'poisn'"),
    ):
        policy.write_text(POLICY.replace(old, new), encoding="utf-8")
        problems = run_json(world, code=1)["problems"]
        assert [(each["file"], each["line"]) for each in problems] == [("policy.yaml", line)]
        assert told in problems[0]["message"]
        shown = run(world, code=1)
        assert f"policy.yaml:{line}" in shown
        assert told in shown
        assert "1 problem" in shown


def test_a_case_that_fails_is_told_with_its_line(world: Path) -> None:
    cases = world / "policy" / "tests" / "cases.yaml"
    cases.write_text(CASES.replace("decision: allow", "decision: deny"), encoding="utf-8")
    report = run_json(world, code=1)
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"], problem["path"]) == ("tests/cases.yaml", 4, "case 'no edits'")
    assert problem["message"] == "decision: expected deny, came allow"
    assert [case["passed"] for case in report["cases"]] == [False, True]


def test_with_keys_the_signature_must_hold(world: Path) -> None:
    key, other = world / "policy.key", world / "other.key"
    write_new_key(key)
    write_new_key(other)
    trusted = ("--policy-key", str(public_path(key)), "--policy-key", str(public_path(other)))
    assert "the bundle is not signed" in run(world, *trusted, code=1)
    signed = sign(Bundle.read(world / "policy"), load_private_key(key))
    (world / "signed.tar.gz").write_bytes(signed.archive())
    report = run_json(world, *trusted, path="signed.tar.gz")
    assert signed.signature is not None
    assert report["policy"]["signed_by"] == signed.signature.key
    assert f"signed by {signed.signature.key}" in run(world, *trusted, path="signed.tar.gz")
    untrusted = run(world, "--policy-key", str(public_path(other)), path="signed.tar.gz", code=1)
    assert "is not trusted" in untrusted
    assert "holds a private key" in run(world, "--policy-key", str(key), code=2)


def test_the_site_and_further_sites_are_those_given(world: Path) -> None:
    policy = world / "policy" / "policy.yaml"
    placed = POLICY.replace("calm.safetensors}", "calm.safetensors, site: layers.1.resid_post}")
    policy.write_text(placed, encoding="utf-8")
    assert "layers.1.resid_post" in run(world, code=1)
    run(world, "--site", "layers.0.resid_pre", "--site", "layers.1.resid_post")
    assert "is not a site" in run(world, "--site", "nowhere", code=2)
    assert "the SAE cannot be read" in run(world, "--sae", str(world), code=2)


def test_an_sae_that_does_not_say_where_it_belongs_needs_a_site(world: Path) -> None:
    config = world / "sae" / "cfg.json"
    stated = json.loads(config.read_text(encoding="utf-8"))
    stated["metadata"].pop("hook_name")
    config.write_text(json.dumps(stated), encoding="utf-8")
    assert "say with --site where it belongs" in run(world, code=2)
    run(world, "--site", "layers.0.resid_pre")


def test_without_an_sae_the_one_that_ships_is_meant(tmp_path: Path) -> None:
    rule = "rules:\n  - {id: no-harm, ban: {features: [{where: {harmful: true, min_precision: 0.6}}]}}\n"
    head = "apiVersion: saegis.dev/v1\nkind: Policy\nname: reference\nserial: 1\nrevision: a\n"
    case = "  - {name: default, expect: {decision: allow, rules: [no-harm]}}\n"
    cases = f"apiVersion: saegis.dev/v1\nkind: PolicyCases\ncases:\n{case}"
    match = "match: {models: [saegis/polyglot]}\n"
    files = {"policy.yaml": (head + match + rule).encode(), "tests/a.yaml": cases.encode()}
    folder = write_files(tmp_path / "policy", files)
    result = CliRunner().invoke(app, ["policy", "validate", str(folder)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "reference@a" in result.stdout


def test_what_is_no_bundle_is_told(world: Path) -> None:
    assert "policy.yaml" in run(world, code=1, path="sae")
    assert "No such file" in run(world, code=1, path="nowhere")
    assert run_json(world, code=1, path="nowhere")["valid"] is False


def test_a_match_that_concerns_nobody_is_told_as_far_as_is_known(world: Path) -> None:
    people = "apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n"
    people += f"- {{name: app, tenant: Acme, roles: [use], token_sha256: {'0' * 64}}}\n"
    (world / "identities.yaml").write_text(people, encoding="utf-8")
    known = ("--identities", str(world / "identities.yaml"))
    (problem,) = run_json(world, *known, code=1)["problems"]
    assert (problem["path"], problem["line"]) == ("match.tenants[0]", 8)
    assert "did you mean 'Acme'?" in problem["message"]
    warned = run_json(world, *known, "--unmatched-policies", "warn")
    assert (warned["valid"], warned["warnings"]) == (True, [problem])
    assert "did you mean 'Acme'?" in run(world, *known, "--unmatched-policies", "warn")
    assert run_json(world, "--name", "whatever")["warnings"] == []


def test_the_sae_has_the_id_that_the_server_gives_it(world: Path) -> None:
    """As of `saegis serve --sae ID=PATH`; by default it is called as its folder."""
    head = "apiVersion: saegis.dev/v1\nkind: Policy\nname: one\nserial: 1\nrevision: r1\n"
    rules = "rules: [{id: only, ban: {features: [{sae: axes, indices: [3]}]}}]"
    write_files(world / "named", {"policy.yaml": (head + rules).encode()})
    assert "axes" in run(world, code=1, path="named")
    assert "valid: one@r1" in run(world, "--sae", f"axes={world / 'sae'}", path="named")


def test_room_for_rows_is_asked_for_as_of_the_server(tmp_path: Path) -> None:
    """41 features of the reference model's SAE, more than there is room for unless it is made."""
    indices = ", ".join(map(str, range(41)))
    rules = f"rules: [{{id: many, ban: {{features: [{{sae: polyglot, indices: [{indices}]}}]}}}}]"
    head = "apiVersion: saegis.dev/v1\nkind: Policy\nname: many\nserial: 1\nrevision: r1\n"
    write_files(tmp_path / "policy", {"policy.yaml": (head + rules).encode()})

    def told(*arguments: str, code: int = 0) -> str:
        given = ["policy", "validate", str(tmp_path / "policy"), *arguments]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())

    refused = told(code=1)
    assert "41 bans at layers.3.resid_post; this server has room for 32" in refused
    assert "saegis serve --rows bans=41" in refused
    assert "valid: many@r1" in told("--rows", "bans=41")
    for wrong in ("bans", "bans=1", "bans=x", "heads=4"):
        assert "write KIND=NUMBER" in told("--rows", wrong, code=2)
