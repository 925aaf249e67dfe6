"""`saegis policy diff`: what two bundles say otherwise, and a replay of what a real server decided."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import saegis
from saegis_server.cli.app import app
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import Labels
from tests.policy.bundles import write_files
from tests.rpc import tiny
from tests.rpc.harness import running

OLD = """\
apiVersion: saegis.dev/v1
kind: Policy
name: p
serial: 1
revision: r1
rules:
  - id: no-poison
    ban: {features: [{sae: first, index: 7}], strength: 2}
allow:
  - {id: style, ops: [clamp, scale], features: [{sae: first, indices: [3, 5]}], max: 4}
"""
NEW = """\
apiVersion: saegis.dev/v1
kind: Policy
name: p
serial: 2
revision: r2
rules:
  - id: no-poison
    ban: {features: [{sae: first, index: 7}], strength: 3}
  - id: stop-river
    when: {if: {feature: {sae: first, index: 5}, above: 1}, over: token}
    stop: {}
allow:
  - {id: style, ops: [clamp, scale], features: [{sae: first, indices: [3]}], max: 8}
limits: {max_edits: 1}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    save_sae(tiny.sae("first", 1), tmp_path / "first")
    Labels(tiny.LABELS).save(tmp_path / "first")
    write_files(tmp_path / "old", {"policy.yaml": OLD.encode()})
    write_files(tmp_path / "new", {"policy.yaml": NEW.encode()})
    return tmp_path


def run(world: Path, *arguments: str, code: int = 0, new: str = "new") -> tuple[str, str]:
    """What the command prints on standard output and error, each on one line."""
    given = ["policy", "diff", str(world / "old"), str(world / new), *arguments]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.stdout.split()), " ".join(result.stderr.split())


def run_json(world: Path, *arguments: str) -> Any:
    return json.loads(run(world, *arguments, "--json")[0])


def replaying(world: Path) -> tuple[str, ...]:
    place = ("--sae", str(world / "first"), "--site", str(tiny.FIRST_SITE), "--site", str(tiny.SECOND_SITE))
    return ("--replay", str(world / "audit"), *place, "--name", "tiny")


def test_what_differs_is_told_entry_by_entry(world: Path) -> None:
    told, notes = run(world)
    for row in (
        "p@r1 → p@r2",
        "changed │ policy │ serial │ 1 │ 2",
        "changed │ rules.no-poison │ ban.strength │ 2.0 │ 3.0",
        "added │ rules.stop-river │ - │ - │",
        "changed │ allow.style │ features[].indices │ [5] │ -",
        "changed │ allow.style │ max │ 4.0 │ 8.0",
        "added │ policy │ limits.max_edits │ - │ 1",
    ):
        assert row.replace("changed │ allow.style │ features", "removed │ allow.style │ features") in told, (
            row
        )
    assert notes == ""
    report = run_json(world)
    assert (report["old"]["serial"], report["new"]["revision"]) == (1, "p@r2")
    assert "replay" not in report
    assert {"kind", "section", "id", "key", "before", "after"} == set(report["changes"][0])
    assert run(world, new="old")[0] == "no difference"


def test_a_replay_says_what_the_candidate_would_have_decided(world: Path) -> None:
    denied = 0
    with (
        running(
            policies={"bundles": [str(world / "old")]},
            audit={"directory": str(world / "audit"), "fsync": "never"},
        ) as server,
        saegis.Client(server.target) as client,
    ):

        def clamp(index: int, value: float = 1.0, **options: Any) -> saegis.Edit:
            return saegis.clamp(saegis.feature(index, sae="first"), value, **options)

        asked: tuple[list[saegis.Edit], ...] = (
            [],
            [clamp(3, phase="prompt")],
            [clamp(5)],
            [clamp(5), clamp(3)],
            [clamp(3, 6.0)],
            [clamp(7)],
            [saegis.add(saegis.direction([1.0] * tiny.WIDTH), 1.0, site=str(tiny.FIRST_SITE))],
        )
        for edits in asked:
            try:
                messages: list[saegis.ChatMessage] = [{"role": "user", "content": "the red bridge"}]
                client.generate(messages=messages, max_tokens=1, steering=edits)
            except saegis.PermissionDenied:
                denied += 1
    assert denied == 3
    report = run_json(world, *replaying(world))["replay"]
    counts = {each["outcome"]: each["decisions"] for each in report["outcomes"]}
    assert counts == {
        "newly denied": 2,
        "newly allowed": 1,
        "still allowed": 2,
        "still denied": 1,
        "not replayed": 1,
    }
    by_outcome = {each["outcome"]: each for each in report["outcomes"]}
    assert by_outcome["newly denied"]["rules"] == {"p/allow": 2, "p/limits.max_edits": 1}
    assert by_outcome["newly allowed"]["rules"] == {"p/allow": 1}
    assert by_outcome["newly denied"]["examples"][0]["tenant"] == "default"
    assert report["not_replayed"] == {"an edit is of a direction, which a log does not hold": 1}
    assert report["unreadable_lines"] == 0
    told, notes = run(world, *replaying(world), "--examples", "1")
    assert "newly denied │ 2 │ p/allow: 2" in told
    assert "newly denied, the first 1" in told
    assert "p/allow at steering.edits[0]: the policy does not allow clamp of feature 5" in told
    assert "the conditions of stop-river are not replayed" in notes


def test_what_a_reader_must_know_is_noted(world: Path) -> None:
    (world / "audit").mkdir()
    (world / "audit" / "audit.jsonl").write_text("no record\n", encoding="utf-8")
    audited = NEW.replace("revision: r2", "revision: r2\nmode: audit")
    write_files(world / "audited", {"policy.yaml": audited.encode()})
    _, notes = run(world, *replaying(world), new="audited")
    assert "1 lines of the log are no records" in notes
    assert "the candidate's mode is audit: it denies nothing" in notes


def test_what_cannot_be_compared_or_replayed_is_told(world: Path) -> None:
    (world / "audit").mkdir()
    assert "holds no audit log" in run(world, *replaying(world), code=2)[1]
    (world / "audit" / "audit.jsonl").touch()
    assert "is no bundle" in run(world, new="first", code=1)[1]
    text = NEW.replace("index: 7", "index: 480")
    write_files(world / "new", {"policy.yaml": text.encode()})
    assert "features 0 to 47" in run(world, *replaying(world), code=1)[1]
