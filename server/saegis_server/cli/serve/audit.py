"""The commands `saegis audit verify | show`: whether an audit log is whole, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, USAGE, console, fail, notes, own_command, print_json, print_json_line
from saegis_server.audit.records import RecordKind

if TYPE_CHECKING:
    from saegis_server.audit.records import PlainJson
    from saegis_server.audit.verify import Verification

app = typer.Typer(no_args_is_help=True, help="Verify and read the audit log.")

VERIFY_EPILOG = """
[bold]Examples[/bold]

saegis audit verify /var/lib/saegis/audit

saegis audit verify /var/lib/saegis/audit --audit-key-file audit.key --json

saegis audit verify /var/lib/saegis/audit --expect-head 5f1c...

A record that was changed, left out, moved or put in is told with its file and line, and the exit code is 1.
Who can write the files could make up a whole new log, unless it is keyed; and that whole records were cut off
at the end shows only with --expect-head, the hash of a record noted earlier: the server logs it at its start
and stop and with every new file, and this command prints it.
"""
SHOW_EPILOG = """
[bold]Examples[/bold]

saegis audit show /var/lib/saegis/audit --last 20

saegis audit show /var/lib/saegis/audit --tenant acme --kind decision

saegis audit show /var/lib/saegis/audit --decision 0b6e --json

Nothing is verified here; `saegis audit verify` does that.
"""
Place = Annotated[
    Path, typer.Argument(metavar="PATH", exists=True, help="The log's directory, or one of its files.")
]
#: The fields of a record that a table shows, in this order, if the record has them.
_SHOWN = (
    *("decision_id", "tenant", "principal", "method", "allowed", "reason", "action"),
    *("name", "digest", "revision", "policy_revision", "finish_reasons", "records", "bytes", "files"),
)


@app.command(epilog=VERIFY_EPILOG)
def verify(
    path: Place,
    audit_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of a keyed log, as the server's setting.")
    ] = None,
    expect_head: Annotated[
        str | None, typer.Option(metavar="HASH", help="Hash of a record that must still be there.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Find changed, missing, moved and cut off records of an audit log."""
    from saegis_server.audit.chain import read_key
    from saegis_server.audit.verify import verify as verify_log

    with _log_errors():
        verification = verify_log(path, read_key(audit_key_file), expect_head)
    if json:
        print_json(_plain(verification))
    else:
        _show(verification)
    if verification.problems:
        raise typer.Exit(FAILURE)


@app.command(epilog=SHOW_EPILOG)
def show(
    path: Place,
    decision: Annotated[
        str, typer.Option(metavar="ID", help="Only records of the decision whose id begins so.")
    ] = "",
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Only records of this tenant.")] = "",
    kind: Annotated[RecordKind | None, typer.Option(help="Only records of this kind.")] = None,
    last: Annotated[int | None, typer.Option(help="Only the last so many of those.", min=1)] = None,
    json: options.Json = False,
) -> None:
    """Print records of an audit log, oldest first; with --json one a line."""
    from collections import deque

    from saegis_server.audit.verify import files_of, records

    def fits(record: Mapping[str, PlainJson]) -> bool:
        return (
            str(record.get("decision_id", "")).startswith(decision)
            and (not tenant or record.get("tenant") == tenant)
            and (kind is None or record["kind"] == kind)
        )

    with _log_errors():
        lines = deque((line for line in records(files_of(path)) if fits(line.record)), maxlen=last)
    if json:
        for line in lines:
            print_json_line(line.record)
    elif lines:
        console().print(_records_table(line.record for line in lines))
    else:
        notes().print("no record fits")


@contextmanager
def _log_errors() -> Iterator[None]:
    from saegis_server.audit import AuditError

    try:
        yield
    except (AuditError, OSError) as error:
        raise fail(str(error), f"see `{own_command()} audit --help`", USAGE) from error


def _plain(verification: Verification) -> dict[str, object]:
    """The outcome in JSON form."""
    first, last = verification.first, verification.last
    return {
        "whole": not verification.problems,
        "records": verification.records,
        "first": first.seq if first else None,
        "last": last.seq if last else None,
        "head": verification.head,
        "problems": list(verification.problems),
        "notes": list(verification.notes),
    }


def _show(verification: Verification) -> None:
    """Print the outcome for people."""
    out = console()
    for problem in verification.problems:
        out.print(Text(str(problem), style="red"), soft_wrap=True)
    for note in verification.notes:
        out.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    if number := len(verification.problems):
        out.print(Text(f"not whole: {number} {'problem' if number == 1 else 'problems'}", style="bold red"))
    elif verification.first is not None and verification.last is not None:
        numbers = f"{verification.first.seq} to {verification.last.seq}"
        out.print(Text(f"whole: {verification.records} records, {numbers}", style="bold green"))
        out.print(Text(f"head:  {verification.head}"), soft_wrap=True)


def _records_table(records: Iterator[Mapping[str, PlainJson]]) -> Table:
    table = Table("record", "time", "kind", "what")
    for record in records:
        what = Text()
        for name in _SHOWN:
            value = record.get(name)
            if value in (None, "", []):
                continue
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            what.append(f"{name} ", style="dim").append(f"{shown}  ")
        table.add_row(str(record["seq"]), Text(str(record["time"])), Text(str(record["kind"])), what)
    return table
