"""The command `saegis policy test`: a bundle's own cases, and which of its rules they reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, console, print_json, titled
from saegis.cli.policy import BundlePath
from saegis_server.cli.policy.world import Subject, read_bundle

if TYPE_CHECKING:
    from saegis_server.policy.bundle.bundle import Bundle, Source
    from saegis_server.policy.decide.cases import CaseResult

EPILOG = """
[bold]Examples[/bold]

saegis policy test ./my-policy

saegis policy test ./my-policy --min-coverage 1

saegis policy test my-policy.tar.gz --sae ./my-sae --site layers.12.resid_post --name owner/model --json

[bold]What is tested[/bold]

The cases in tests/*.yaml: requests that are decided, and played through where they say what is read. A rule,
allowance or protection is reached by a case in which it denies, its condition holds, it allows an edit, or
the case expects it to be in force. The exit code is 1 if a case fails, if there is none, or if too little is
reached.
"""
_SECTIONS = ("rules", "allow", "protect")

MinCoverage = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of the rules, allowances and protections that cases must reach, from 0 to 1.",
    ),
]


@options.grouped
def run(
    bundle: BundlePath,
    min_coverage: MinCoverage = 0.0,
    *,
    subject: Subject,
    json: options.Json = False,
) -> None:
    """Run a bundle's own cases without a server, and show which of its rules they reach."""
    policy = read_bundle(bundle)
    compiled = subject.compiled(bundle, policy)
    from saegis_server.policy.decide.cases import run_cases

    report = _Report(policy, run_cases(compiled), min_coverage)
    if json:
        print_json(report.plain())
    else:
        for table in report.tables():
            console().print(table)
        console().print(report.verdict(), soft_wrap=True)
    if report.faults:
        raise typer.Exit(FAILURE)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A rule, allowance or protection: its place in the bundle, and which cases reach it."""

    section: str
    id: str
    source: Source | None
    cases: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return {"section": self.section, "id": self.id, **_place(self.source), "cases": list(self.cases)}


@dataclass(frozen=True, slots=True)
class _Report:
    """The results of a bundle's cases. min_coverage: the share of entries that they must reach."""

    bundle: Bundle
    results: tuple[CaseResult, ...]
    min_coverage: float

    @property
    def entries(self) -> list[_Entry]:
        """Everything that cases can reach."""
        return [
            _Entry(
                section,
                entry.id,
                self.bundle.sources.get(entry.id),
                tuple(result.name for result in self.results if entry.id in result.reached),
            )
            for section in _SECTIONS
            for entry in getattr(self.bundle.policy, section)
        ]

    @property
    def share(self) -> float:
        """The share of entries that some case reaches; 1 if there is nothing to reach."""
        entries = self.entries
        return sum(bool(entry.cases) for entry in entries) / len(entries) if entries else 1.0

    @property
    def faults(self) -> list[str]:
        """Why the bundle does not pass."""
        failed = sum(not result.passed for result in self.results)
        faults = [f"{failed} of {len(self.results)} cases failed"] if failed else []
        if not self.results:
            faults.append("the bundle has no cases; write some into tests/cases.yaml")
        if self.share < self.min_coverage:
            missed = ", ".join(entry.id for entry in self.entries if not entry.cases)
            faults.append(
                f"coverage {self.share:.0%} is under {self.min_coverage:.0%}: no case reaches {missed}"
            )
        return faults

    def plain(self) -> dict[str, Any]:
        """The report in JSON form."""
        policy = self.bundle.policy
        return {
            "passed": not self.faults,
            "faults": self.faults,
            "policy": {"name": policy.name, "serial": policy.serial, "revision": policy.revision},
            "cases": [
                {
                    "name": result.name,
                    **_place(self.bundle.case_sources.get(result.name)),
                    "passed": result.passed,
                    "failures": list(result.failures),
                    "reached": sorted(result.reached),
                }
                for result in self.results
            ],
            "coverage": {
                "share": self.share,
                "wanted": self.min_coverage,
                "entries": [entry.plain() for entry in self.entries],
            },
        }

    def tables(self) -> list[Table]:
        """The tables of the cases and of what they reach."""
        cases = titled(f"{self.bundle.revision_name}: cases", ("", "case", "where", "what came otherwise"))
        for result in self.results:
            outcome = Text("PASS", "green") if result.passed else Text("FAIL", "bold red")
            where = _shown(self.bundle.case_sources.get(result.name))
            cases.add_row(outcome, Text(result.name), where, Text("\n".join(result.failures)))
        reached = titled("coverage", ("", "what", "id", "where", "cases"))
        for entry in self.entries:
            mark = Text("reached", "green") if entry.cases else Text("never", "bold yellow")
            count = Text(str(len(entry.cases)))
            reached.add_row(mark, Text(entry.section), Text(entry.id), _shown(entry.source), count)
        return [table for table in (cases, reached) if table.row_count]

    def verdict(self) -> Text:
        """The outcome in a line, or a line for each fault."""
        if self.faults:
            return Text("\n".join(f"failed: {fault}" for fault in self.faults), "bold red")
        return Text.assemble(
            ("passed: ", "bold green"), f"{len(self.results)} cases, coverage {self.share:.0%}"
        )


def _place(source: Source | None) -> Mapping[str, Any]:
    return {"file": source.file if source else "", "line": source.line if source else 0}


def _shown(source: Source | None) -> Text:
    return Text(f"{source.file}:{source.line}" if source else "-")
