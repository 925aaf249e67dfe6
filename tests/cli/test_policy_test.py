"""`saegis policy test`: the cases that pass and fail, and what they reach."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saegis_server.cli.app import app
from saegis_server.sae.formats.saelens import save_sae
from tests.cli.offline_world import sae
from tests.cli.test_policy_validate import LABELS, good_files
from tests.policy.bundles import CASES, write_files

MORE = """\
  - name: poison stops it
    request:
      tenant: acme
      readings:
        - {feature: {label: poison}, answer: [0, 2]}
        - {direction: {file: directions/calm.safetensors}, prompt: [1], answer: [1, 1]}
    expect: {decision: allow, rules: [no-poison], fires: [stop-poison], stopped_at: 2}
  - name: the river may not be touched
    request: {tenant: acme, edits: [{op: clamp, feature: {index: 11}, value: 1}]}
    expect: {decision: deny, rules: [keep]}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    save_sae(sae(), tmp_path / "sae")
    LABELS.save(tmp_path / "sae")
    write_files(tmp_path / "policy", {**good_files(), "tests/cases.yaml": (CASES + MORE).encode()})
    return tmp_path


def run(world: Path, *arguments: str, code: int = 0) -> str:
    """Standard output of the command, on one line."""
    given = ["policy", "test", str(world / "policy"), "--sae", str(world / "sae"), *arguments]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join((result.stdout if code < 2 else result.stderr).split())


def run_json(world: Path, *arguments: str, code: int = 0) -> Any:
    return json.loads(run(world, *arguments, "--json", code=code))


def test_cases_pass_and_tell_what_they_reach(world: Path) -> None:
    report = run_json(world)
    assert (report["passed"], report["faults"]) == (True, [])
    assert report["policy"] == {"name": "acme.base", "serial": 3, "revision": "2026.1"}
    assert [(each["name"], each["passed"], each["line"]) for each in report["cases"]] == [
        ("no edits", True, 4),
        ("another tenant", True, 7),
        ("poison stops it", True, 10),
        ("the river may not be touched", True, 17),
    ]
    reached = {each["id"]: each for each in report["coverage"]["entries"]}
    assert {id_: each["cases"] for id_, each in reached.items()} == {
        "no-poison": ["poison stops it"],
        # Without readings the direction is not above 0.
        "stop-poison": ["no edits", "poison stops it"],
        "less-river": [],
        "style": [],
        "keep": ["the river may not be touched"],
    }
    assert (reached["keep"]["section"], reached["keep"]["file"]) == ("protect", "rules/part.yaml")
    assert report["coverage"]["share"] == pytest.approx(3 / 5)
    told = run(world)
    assert "passed: 4 cases, coverage 60%" in told
    assert "never │ rules │ less-river │ rules/part.yaml:4 │ 0" in told
    assert told.count("PASS") == 4


def test_too_little_coverage_fails_and_says_what_is_not_reached(world: Path) -> None:
    run(world, "--min-coverage", "0.6")
    assert "failed: coverage 60% is under 61%: no case reaches less-river, style" in run(
        world, "--min-coverage", "0.61", code=1
    )
    assert run_json(world, "--min-coverage", "1", code=1)["coverage"]["wanted"] == 1.0
    assert "--min-coverage" in run(world, "--min-coverage", "1.5", code=2)


def test_a_case_that_fails_says_what_came_otherwise(world: Path) -> None:
    cases = world / "policy" / "tests" / "cases.yaml"
    cases.write_text((CASES + MORE).replace("stopped_at: 2", "stopped_at: 1"), encoding="utf-8")
    told = run(world, code=1)
    assert "FAIL │ poison stops it │ tests/cases.yaml:10" in told
    assert "stopped_at: expected 1, but it is stopped at 2" in told
    assert "failed: 1 of 4 cases failed" in told
    report = run_json(world, code=1)
    assert [each["passed"] for each in report["cases"]] == [True, True, False, True]
    assert report["cases"][2]["failures"] == ["stopped_at: expected 1, but it is stopped at 2"]


def test_without_cases_nothing_is_tested(world: Path) -> None:
    (world / "policy" / "tests" / "cases.yaml").unlink()
    assert "failed: the bundle has no cases; write some into tests/cases.yaml" in run(world, code=1)


def test_a_bundle_that_does_not_fit_is_told(world: Path) -> None:
    policy = world / "policy" / "policy.yaml"
    text = policy.read_text(encoding="utf-8")
    policy.write_text(text.replace("label: poison", "label: poisn"), encoding="utf-8")
    result = CliRunner().invoke(
        app, ["policy", "test", str(world / "policy"), "--sae", str(world / "sae")], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 1
    assert "no feature labelled 'poisn'" in result.stderr
    assert "policy.yaml:17" in result.stderr


def test_the_policy_that_ships_passes_its_own_cases() -> None:
    shipped = Path(__file__).parents[2] / "deploy" / "policies" / "no-harm"
    result = CliRunner().invoke(app, ["policy", "test", str(shipped), "--min-coverage", "1"])
    assert result.exit_code == 0, result.output
