"""A search finds what a reader of the whole log would, page by page, while the log goes on."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from saegis_server.audit import search
from saegis_server.audit.files import ACTIVE, closed_files
from saegis_server.audit.log import AuditLog
from saegis_server.audit.search import Place, Wanted, find
from tests.audit.logs import answer, decision, lines, put, settings

TENANTS, RULES = ("acme", "zenith"), ("no-harm", "cap-river", "stop")


def fill(log: AuditLog, chance: random.Random, number: int) -> None:
    """Decisions with denials, answers with rules, and records of other kinds."""
    for each in range(number):
        rule = {"policy": "guard", "rule": chance.choice(RULES)}
        fields: dict[str, Any] = {"tenant": chance.choice(TENANTS)}
        if chance.random() < 0.3:
            fields |= {"allowed": False, "denials": (rule,)}
        fields["rules"] = ({"policy": "guard", "rule": "always"},)
        log.append(decision(each, **fields)).result()
        if chance.random() < 0.5:
            log.append(answer(each)).result()
        if chance.random() < 0.1:
            log.append(put(each)).result()


def plainly(record: dict[str, Any], wanted: Wanted) -> bool:
    """Whether a record fits, worked out the plain way."""
    if record["kind"] not in ("decision", "answer"):
        return False
    named = [each["rule"] for each in record.get("denials", [])]
    time = datetime.fromisoformat(record["time"])
    return (
        (not wanted.tenant or record["tenant"] == wanted.tenant)
        and (not wanted.rule or wanted.rule.removeprefix("guard/") in named)
        and (not wanted.denied or record.get("allowed") is False)
        and (not wanted.decision_id or record["decision_id"] == wanted.decision_id)
        and (wanted.begin is None or time >= wanted.begin)
        and (wanted.end is None or time < wanted.end)
    )


def all_pages(directory: Path, wanted: Wanted, most: int) -> list[int]:
    """The numbers of the records on all pages; the places go through their text."""
    found, place = [], None
    while True:
        page = find(directory, wanted, most, place)
        assert len(page.records) <= most
        found += [int(str(record["seq"])) for record in page.records]
        if page.rest is None:
            return found
        place = Place.parse(str(page.rest))


@pytest.mark.parametrize("block", [7, 300, 64 * 1024])
def test_all_pages_are_what_the_whole_log_has(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_BLOCK", block)
    chance = random.Random(1)
    log = AuditLog(settings(tmp_path, max_bytes=4096, fsync="never"))
    fill(log, chance, 60)
    written = lines(tmp_path)
    assert len(closed_files(tmp_path)) > 3
    middle = datetime.fromisoformat(written[len(written) // 2]["time"])
    for wanted in (
        Wanted(),
        Wanted(tenant="zenith"),
        Wanted(rule="no-harm"),
        Wanted(rule="guard/stop", denied=True),
        Wanted(decision_id="decision-7"),
        Wanted(begin=middle),
        Wanted(end=middle, tenant="acme"),
        Wanted(rule="always"),
    ):
        expected = [record["seq"] for record in reversed(written) if plainly(record, wanted)]
        for most in (1, 7, 1000):
            assert all_pages(tmp_path, wanted, most) == expected
    log.close()


def test_an_answer_is_found_by_what_a_rule_did(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path, fsync="never"))
    log.append(answer(1)).result()
    acted = {**vars_of(answer(2)), "rules": ({"policy": "guard", "rule": "no-harm", "mode": "enforce"},)}
    log.append(type(answer(2))(**acted)).result()
    found = find(tmp_path, Wanted(rule="guard/no-harm"), 10)
    assert [record["decision_id"] for record in found.records] == ["decision-2"]
    assert not find(tmp_path, Wanted(rule="other/no-harm"), 10).records
    log.close()


def vars_of(record: Any) -> dict[str, Any]:
    """The fields of a record."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "kind"}


def test_a_page_goes_on_where_it_was_though_the_file_is_closed_meanwhile(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path, max_bytes=4096, fsync="never"))
    fill(log, random.Random(2), 4)
    first = find(tmp_path, Wanted(), 2)
    before = [record["seq"] for record in lines(tmp_path) if record["kind"] in ("decision", "answer")]
    fill(log, random.Random(3), 20)
    assert len(closed_files(tmp_path)) > 1
    assert first.rest is not None
    rest = find(tmp_path, Wanted(), 1000, first.rest)
    assert [record["seq"] for record in (*first.records, *rest.records)] == before[::-1]
    log.close()


def test_a_search_reads_a_bounded_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_READ", 2000)
    log = AuditLog(settings(tmp_path, fsync="never"))
    fill(log, random.Random(4), 30)
    page = find(tmp_path, Wanted(decision_id="decision-0"), 10)
    assert page.records == ()
    assert page.rest is not None
    assert set(all_pages(tmp_path, Wanted(decision_id="decision-0"), 10)) == {
        record["seq"] for record in lines(tmp_path) if record.get("decision_id") == "decision-0"
    }
    log.close()


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path, fsync="never", mask=("/tenant", "/denials")))
    log.append(decision(1, allowed=False, denials=({"policy": "guard", "rule": "no-harm"},))).result()
    log.close()
    path = tmp_path / ACTIVE
    text = path.read_bytes()
    record = json.loads(text.splitlines()[1]) | {"time": "yesterday"}
    forged = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(text + b"nonsense\n" + forged + b'\n{"torn":')
    assert len(find(tmp_path, Wanted(), 10).records) == 2
    assert not find(tmp_path, Wanted(tenant="acme"), 10).records
    assert not find(tmp_path, Wanted(rule="no-harm"), 10).records
    now = datetime.now(UTC)
    assert len(find(tmp_path, Wanted(begin=now - timedelta(hours=1), end=now), 10).records) == 1
    assert find(tmp_path, Wanted(), 10, Place(1, 10)).records == ()
    for text_of_place in ("", "1", "1-", "-1-2", "1-2 ", "1-" + "9" * 40, "١-٢"):
        with pytest.raises(ValueError, match="no place"):
            Place.parse(text_of_place)
