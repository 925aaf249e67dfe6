"""The command `saegis policy diff`: what a bundle changes, and which decisions would have changed."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, print_json, titled
from saegis_server.cli.policy.world import Subject, read_bundle

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


@options.grouped
def diff(
    old: Old,
    new: New,
    replay: ReplayFrom = None,
    examples: Examples = 5,
    *,
    subject: Subject,
    json: options.Json = False,
) -> None:
    """Show what NEW says otherwise than OLD and, with --replay, what it would have decided otherwise."""
    before, after = read_bundle(old), read_bundle(new)
    from saegis_server.policy.bundle.difference import differences

    changes = differences(before, after)
    replayed = None
    if replay is not None:
        replayed = _replay(replay, subject.compiled(new, after), before, examples)
    if json:
        print_json(_plain(before, after, changes, replayed))
        return
    console().print(_changes_table(before, after, changes) if changes else Text("no difference", "green"))
    if replayed is not None:
        _show_replay(replayed)
        _note(after, replayed)


def _replay(place: Path, candidate: CompiledPolicy, before: Bundle, examples: int) -> Replay:
    from saegis_server.audit import AuditError
    from saegis_server.policy.decide.replay import replay

    try:
        return replay(place, candidate, (before.policy.name,), examples)
    except (AuditError, OSError) as error:
        raise fail(str(error), "name the directory of an audit log with --replay", USAGE) from error


def _plain(old: Bundle, new: Bundle, changes: tuple[Change, ...], replay: Replay | None) -> dict[str, Any]:
    """The difference in JSON form."""
    plain: dict[str, Any] = {
        name: {"revision": bundle.revision_name, "serial": bundle.policy.serial, "digest": bundle.digest}
        for name, bundle in (("old", old), ("new", new))
    }
    keys = ("kind", "section", "id", "key", "before", "after")
    plain["changes"] = [{key: getattr(change, key) for key in keys} for change in changes]
    if replay is not None:
        from saegis_server.policy.decide.replay import Outcome

        plain["replay"] = {
            "outcomes": [
                {
                    "outcome": outcome.value,
                    "decisions": replay.counts[outcome],
                    "rules": dict(replay.rules.get(outcome, {})),
                    "examples": replay.examples.get(outcome, []),
                }
                for outcome in Outcome
            ],
            "not_replayed": dict(replay.reasons),
            "unreadable_lines": replay.unreadable,
        }
    return plain


def _changes_table(old: Bundle, new: Bundle, changes: tuple[Change, ...]) -> Table:
    title = f"{old.revision_name} → {new.revision_name}"
    table = titled(title, ("", "what", "key", "before", "after"))
    styles = {"added": "green", "removed": "red", "changed": "yellow"}
    for change in changes:
        what = f"{change.section}.{change.id}" if change.id else change.section
        row = (what, change.key or "-", _shown(change.before), _shown(change.after))
        table.add_row(Text(change.kind, styles[change.kind]), *map(Text, row))
    return table


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    text = json_text.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _show_replay(replay: Replay) -> None:
    """Print the outcomes with the rules behind them, then examples of changed decisions."""
    from saegis_server.policy.decide.replay import Outcome

    columns = ("outcome", "decisions", "by rule")
    table = titled("recorded decisions under the candidate", columns, numbers=("decisions",))
    for outcome in Outcome:
        rules = replay.rules.get(outcome) if outcome is not Outcome.NOT_REPLAYED else replay.reasons
        counts = "\n".join(f"{name}: {count}" for name, count in (rules or {}).items())
        table.add_row(Text(outcome.value), str(replay.counts[outcome]), Text(counts))
    console().print(table)
    for outcome in (Outcome.NEWLY_DENIED, Outcome.NEWLY_ALLOWED):
        if replay.examples.get(outcome):
            console().print(_examples_table(outcome, replay.examples[outcome]))


def _examples_table(outcome: Outcome, examples: list[Replayed]) -> Table:
    from saegis_server.policy.decide.replay import rule_name

    title = f"{outcome.value}, the first {len(examples)}"
    table = titled(title, ("decision", "time", "tenant", "by"))
    for example in examples:
        denials = "\n".join(
            f"{rule_name(denial)}{f' at {denial.field}' if denial.field else ''}: {denial.message}"
            for denial in example.denials
        )
        table.add_row(*map(Text, (example.decision_id[:12], example.time, example.tenant, denials)))
    return table


def _note(new: Bundle, replay: Replay) -> None:
    """Print notes on what could not be read and on what a replay leaves out."""
    if replay.unreadable:
        notes().print(f"note: {replay.unreadable} lines of the log are no records", style="yellow")
    acting = [rule.id for rule in new.policy.rules if rule.when is not None]
    if acting:
        notes().print(
            f"note: the conditions of {', '.join(acting)} are not replayed", style="yellow", soft_wrap=True
        )
    if new.policy.mode != "enforce":
        notes().print(f"note: the candidate's mode is {new.policy.mode}: it denies nothing", style="yellow")
