"""Tests of JSON output and of the receipt's line."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from saegis import (
    AppliedEdit,
    AppliedRule,
    FinishReason,
    PhaseTokens,
    Receipt,
    RuleMode,
    SiteReceipt,
    TargetTokens,
    Timings,
    Usage,
)
from saegis.cli.output import plain, print_json, shares
from saegis.cli.receipts import fired_table, receipt_line, rules_table


@dataclass
class _Thing:
    reason: FinishReason
    at: datetime
    pair: tuple[int, float]
    nothing: None = None


def receipt(**changes: int) -> Receipt:
    counts = {"edits": 0, "rules": 0, "bans": 0, "watches": 0, "tokens_edited": 0, "bans_fired": 0}
    site = SiteReceipt("layers.1.resid_post", **{**counts, **changes}, largest_relative_norm=0.5)
    steered = bool(changes.get("tokens_edited"))
    return Receipt("ab" * 32, "", (site,), steered, "model", Timings(0.25, 0.5, 0.75), (), False, "")


def test_dataclasses_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"thing": _Thing(FinishReason.LENGTH, datetime(2026, 1, 2, tzinfo=UTC), (1, 0.5)), 3: "ß"})
    out = capsys.readouterr().out
    assert "ß" in out
    assert json.loads(out) == {
        "thing": {"reason": "length", "at": "2026-01-02T00:00:00+00:00", "pair": [1, 0.5], "nothing": None},
        "3": "ß",
    }


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        plain({"a": {1, 2}})


def test_the_receipts_line_tells_the_three_cases_apart() -> None:
    usage = Usage(prompt_tokens=4, completion_tokens=6, cached_tokens=0, steered_tokens=0)
    steered = Usage(prompt_tokens=4, completion_tokens=6, cached_tokens=0, steered_tokens=7)
    assert "unsteered" in receipt_line(receipt(), usage).plain
    assert "no token moved" in receipt_line(receipt(bans=2), usage).plain
    line = receipt_line(receipt(edits=1, bans=2, tokens_edited=7, bans_fired=3), steered).plain
    assert "steered 7 of 10 tokens: 1 edits, 2 bans (fired 3 times)" in line
    assert "in 1.50 s" in line
    assert "abababababababab]" in line


def test_the_receipts_line_tells_who_rules() -> None:
    usage = Usage(prompt_tokens=4, completion_tokens=6, cached_tokens=0, steered_tokens=0)
    rule = AppliedRule("no-harm", "ban", "ban", RuleMode.ENFORCE, (), "", 0, False)
    ruled = replace(receipt(bans=2), policy_revision="no-harm@1", rules=(rule,), ruled=True)
    assert "by the operator's no-harm/ban (no-harm@1)" in receipt_line(ruled, usage).plain
    untold = replace(ruled, rules=())
    assert "by the operator's rules (no-harm@1)" in receipt_line(untold, usage).plain


def test_shares_stand_on_one_line_by_language() -> None:
    assert shares({"fr": 0.5, "en": 0.256}) == "en 0.26  fr 0.50"
    assert shares({}) == "-"


def shown(table: object) -> list[str]:
    """The lines of a table, without its frame and the width of its columns."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.replace("│", " ").split()) for line in capture.get().splitlines()]


def test_what_fired_is_told_by_feature_and_by_whose_wish() -> None:
    def target(index: int | None, tokens: PhaseTokens | None) -> TargetTokens:
        label, direction = ("poison", "") if index == 7 else ("", "" if index else "ab" * 32)
        return TargetTokens("layers.1.resid_post", "main" if index else "", index, label, direction, tokens)

    rule = AppliedRule(
        "no-harm",
        "ban",
        "ban",
        RuleMode.ENFORCE,
        (),
        "",
        2,
        True,
        acted=PhaseTokens(0, 5),
        targets=(target(7, PhaseTokens(0, 5)), target(8, PhaseTokens(0, 0)), target(9, None)),
        held=PhaseTokens(1, 1),
        first_held=3,
        stopped=1,
        readings=(target(None, PhaseTokens(2, 0)),),
    )
    edit = AppliedEdit(0, "clamp", target(3, PhaseTokens(4, 6)))
    told = replace(receipt(bans=2), rules=(rule,), ruled=True, edits=(edit,))
    fired = shown(fired_table(told))
    assert "layers.1.resid_post main:3 clamp the request 4 6" in fired
    assert "layers.1.resid_post main:7 poison ban no-harm/ban 0 5" in fired
    assert "layers.1.resid_post main:9 ban no-harm/ban not counted" in fired
    assert "layers.1.resid_post direction abababababababab is active condition of no-harm/ban 2 0" in fired
    assert not any("main:8" in line for line in fired)
    assert "1 more at no token" in fired
    (line,) = (line for line in shown(rules_table(told)) if line.startswith("no-harm/ban"))
    assert "0 + 5 at 1 + 1 tokens, first at 3; ended 1" in line
