"""The command `saegis policy diff`: what a bundle says otherwise, and what it would have decided."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, print_json
from saegis_server.cli.policy import world as policy_world

if TYPE_CHECKING:
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.bundle.difference import Change
    from saegis_server.policy.decide.compiled import CompiledPolicy
    from saegis_server.policy.decide.replay import Outcome, Replay, Replayed

EPILOG = """
[bold]Examples[/bold]

saegis policy diff ./my-policy ./my-candidate

saegis policy diff my-policy.tar.gz ./my-candidate --replay /var/lib/saegis/audit

saegis policy diff ./my-policy ./my-candidate --replay audit.jsonl --examples 20 --json

[bold]What is replayed[/bold]

Every decision that the audit log tells of, with NEW in the place of OLD; what other policies denied stays
denied. Conditions are not replayed, since a log does not hold what was read, nor are edits of directions.
Whether the log is genuine is for saegis audit verify to say.
"""
_LONGEST = 200

Old = Annotated[Path, typer.Argument(metavar="OLD", help="The bundle that is in force.")]
New = Annotated[Path, typer.Argument(metavar="NEW", help="The candidate.")]
ReplayFrom = Annotated[
    Path | None,
    typer.Option(
        "--replay", metavar="PATH", exists=True, help="An audit log: its directory, or one of its files."
    ),
]
Examples = Annotated[int, typer.Option(min=0, help="Most decisions of a kind to show.")]


def diff(
    old: Old,
    new: New,
    replay: ReplayFrom = None,
    examples: Examples = 5,
    sae: policy_world.Sae = None,
    site: policy_world.Sites = None,
    name: policy_world.ModelName = None,
    rows: policy_world.Rows = None,
    json: options.Json = False,
) -> None:
    """Show what NEW says otherwise than OLD and, with --replay, what it would have decided otherwise."""
    before, after = policy_world.read_bundle(old), policy_world.read_bundle(new)
    from saegis_server.policy.bundle.difference import differences

    changes = differences(before, after)
    found = None
    if replay is not None:
        candidate = policy_world.compiled(new, after, policy_world.offline_world(sae, site, name, rows))
        found = _replay(replay, candidate, before, examples)
    if json:
        print_json(_plain(before, after, changes, found))
        return
    console().print(_changes_table(before, after, changes) if changes else Text("no difference", "green"))
    if found is not None:
        _tell(found)
        _note(after, found)


def _replay(place: Path, candidate: CompiledPolicy, before: Bundle, examples: int) -> Replay:
    from saegis_server.audit import AuditError
    from saegis_server.policy.decide.replay import replay

    try:
        return replay(place, candidate, (before.policy.name,), examples)
    except (AuditError, OSError) as error:
        raise fail(str(error), "name the directory of an audit log with --replay", USAGE) from error


def _plain(old: Bundle, new: Bundle, changes: tuple[Change, ...], found: Replay | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "old": {"revision": old.revision_name, "serial": old.policy.serial, "digest": old.digest},
        "new": {"revision": new.revision_name, "serial": new.policy.serial, "digest": new.digest},
        "changes": [
            {
                "kind": each.kind,
                "section": each.section,
                "id": each.id,
                "key": each.key,
                "before": each.before,
                "after": each.after,
            }
            for each in changes
        ],
    }
    if found is not None:
        from saegis_server.policy.decide.replay import Outcome

        told["replay"] = {
            "outcomes": [
                {
                    "outcome": outcome.value,
                    "decisions": found.counts[outcome],
                    "rules": dict(found.rules.get(outcome, {})),
                    "examples": found.examples.get(outcome, []),
                }
                for outcome in Outcome
            ],
            "not_replayed": dict(found.reasons),
            "unreadable_lines": found.unreadable,
        }
    return told


def _changes_table(old: Bundle, new: Bundle, changes: tuple[Change, ...]) -> Table:
    table = Table(
        title=Text(f"{old.revision_name} → {new.revision_name}"), title_justify="left", title_style="bold"
    )
    for column in ("", "what", "key", "before", "after"):
        table.add_column(column, overflow="fold")
    styles = {"added": "green", "removed": "red", "changed": "yellow"}
    for each in changes:
        what = f"{each.section}.{each.id}" if each.id else each.section
        row = (what, each.key or "-", _shown(each.before), _shown(each.after))
        table.add_row(Text(each.kind, styles[each.kind]), *map(Text, row))
    return table


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    text = json_text.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _tell(found: Replay) -> None:
    """The outcomes with the rules behind them, then examples of what changes."""
    from saegis_server.policy.decide.replay import Outcome

    table = Table(
        title=Text("recorded decisions under the candidate"), title_justify="left", title_style="bold"
    )
    table.add_column("outcome")
    table.add_column("decisions", justify="right")
    table.add_column("by rule", overflow="fold")
    for outcome in Outcome:
        rules = found.rules.get(outcome) if outcome is not Outcome.NOT_REPLAYED else found.reasons
        told = "\n".join(f"{name}: {count}" for name, count in (rules or {}).items())
        table.add_row(Text(outcome.value), str(found.counts[outcome]), Text(told))
    console().print(table)
    for outcome in (Outcome.NEWLY_DENIED, Outcome.NEWLY_ALLOWED):
        if found.examples.get(outcome):
            console().print(_examples_table(outcome, found.examples[outcome]))


def _examples_table(outcome: Outcome, examples: list[Replayed]) -> Table:
    from saegis_server.policy.decide.replay import rule_name

    title = Text(f"{outcome.value}, the first {len(examples)}")
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("decision", "time", "tenant", "by"):
        table.add_column(column, overflow="fold")
    for each in examples:
        by = (
            f"{rule_name(denial)}{f' at {denial.field}' if denial.field else ''}: {denial.message}"
            for denial in each.denials
        )
        table.add_row(Text(each.decision_id[:12]), Text(each.time), Text(each.tenant), Text("\n".join(by)))
    return table


def _note(new: Bundle, found: Replay) -> None:
    """What the reader should know: what could not be read, and what a replay leaves out."""
    if found.unreadable:
        notes().print(f"note: {found.unreadable} lines of the log are no records", style="yellow")
    acting = [rule.id for rule in new.policy.rules if rule.when is not None]
    if acting:
        notes().print(
            f"note: the conditions of {', '.join(acting)} are not replayed", style="yellow", soft_wrap=True
        )
    if new.policy.mode != "enforce":
        notes().print(f"note: the candidate's mode is {new.policy.mode}: it denies nothing", style="yellow")
