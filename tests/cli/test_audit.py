"""Tests of `saegis audit verify` and `saegis audit show`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saegis_server.audit import records as audit_record
from saegis_server.audit.files import ACTIVE
from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import AuditRecord, RecordKind
from saegis_server.cli.app import app
from tests.audit.logs import answer, decision, lines, put, settings


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of seven records: start, two requests of one tenant, a change of a policy, stop."""
    directory = tmp_path / "log"
    found = AuditLog(settings(directory))
    for record in (decision(1), answer(1), decision(2), answer(2), put(3)):
        found.append(record).result()
    found.close()
    return directory


@pytest.mark.parametrize("command", ["verify", "show"])
def test_the_examples_of_the_help_name_its_options(command: str) -> None:
    shown = invoke(command, "--help").output
    told, examples = shown.split("Examples", 1)
    assert f"saegis audit {command}" in examples
    assert {word.rstrip(".,") for word in examples.split() if word.startswith("--")} <= set(told.split())


def test_verify_tells_that_a_log_is_whole_and_its_head(log: Path) -> None:
    result = invoke("verify", str(log))
    assert result.exit_code == 0
    assert "whole: 7 records, 1 to 7" in result.output
    assert lines(log)[-1]["hash"] in result.output


def test_verify_tells_each_problem_and_fails(log: Path) -> None:
    text = (log / ACTIVE).read_bytes()
    (log / ACTIVE).write_bytes(text.replace(b'"allowed":true', b'"allowed":false', 1))
    result = invoke("verify", str(log))
    assert result.exit_code == 1
    assert f"{ACTIVE}:2: record 2 was changed" in result.output
    assert "not whole: 1 problem" in result.output
    found = json.loads(invoke("verify", str(log), "--json").output)
    assert found["whole"] is False
    assert [each["line"] for each in found["problems"]] == [2]


def test_verify_with_a_head_finds_what_was_cut_off(log: Path) -> None:
    head = lines(log)[-1]["hash"]
    assert invoke("verify", str(log), "--expect-head", head).exit_code == 0
    text = (log / ACTIVE).read_bytes().splitlines(keepends=True)
    (log / ACTIVE).write_bytes(b"".join(text[:-1]))
    assert invoke("verify", str(log)).exit_code == 0
    result = invoke("verify", str(log), "--expect-head", head)
    assert result.exit_code == 1
    assert "the end was cut off" in result.output


def test_verify_with_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 40)
    AuditLog(settings(tmp_path / "log", key_file=key)).close()
    assert invoke("verify", str(tmp_path / "log"), "--audit-key-file", str(key)).exit_code == 0
    result = invoke("verify", str(tmp_path / "log"))
    assert result.exit_code == 1
    assert "another key" in result.output


def test_what_cannot_be_verified_is_a_usage_error(tmp_path: Path) -> None:
    result = invoke("verify", str(tmp_path))
    assert result.exit_code == 2
    assert "holds no audit log" in result.stderr
    result = invoke("verify", str(tmp_path), "--audit-key-file", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "No such file" in result.stderr
    assert invoke("show", str(tmp_path / "none")).exit_code == 2


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ((), [1, 2, 3, 4, 5, 6, 7]),
        (("--decision", "decision-2"), [4, 5]),
        (("--tenant", "acme"), [2, 3, 4, 5]),
        (("--kind", "policy"), [6]),
        (("--tenant", "acme", "--last", "1"), [5]),
        (("--kind", "identity"), []),
    ],
)
def test_show_prints_the_records_that_fit(log: Path, options: tuple[str, ...], numbers: list[int]) -> None:
    result = invoke("show", str(log), "--json", *options)
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == numbers


def test_a_kind_that_no_record_has_is_an_error_that_lists_them(log: Path) -> None:
    result = invoke("show", str(log), "--kind", "refused")
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "refused" in told
    assert all(kind in told for kind in RecordKind)


def test_every_kind_of_record_can_be_asked_for() -> None:
    known = [each for each in vars(audit_record).values() if isinstance(each, type)]
    records = [each for each in known if issubclass(each, AuditRecord) and each is not AuditRecord]
    assert [each.kind for each in records] == list(RecordKind)


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    shown = invoke("show", str(path))
    assert shown.exit_code == 2
    assert "no line of it is an audit record" in shown.stderr


def test_show_prints_a_table(log: Path) -> None:
    shown = invoke("show", str(log), "--kind", "policy").output
    assert "policy-3" in shown
    assert "r3" in shown
    assert "no record fits" in invoke("show", str(log), "--tenant", "nobody").stderr
