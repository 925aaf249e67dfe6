"""The command `saegis policy validate`: everything that is wrong with a bundle, found without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, USAGE, console, fail, own_command, print_json
from saegis.cli.policy import BundlePath, problem_table
from saegis_server.cli.policy.world import Subject
from saegis_server.policy.errors import Unmatched

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.decide.cases import CaseResult
    from saegis_server.policy.decide.world import Callers
    from saegis_server.policy.store.checking import Checker
    from saegis_server.problem import Problem

EPILOG = """
[bold]Examples[/bold]

saegis policy validate ./my-policy

saegis policy validate my-policy.tar.gz --policy-key policy.key.pub --json

saegis policy validate ./my-policy --sae ./my-sae --site layers.12.resid_post --name owner/model

[bold]What is checked[/bold]

The files and their schema; the signature, where a --policy-key is given; that every feature, direction and
site exists and every ban can be proven; that the bundle's own cases come out as they say; and that its match
names the model, where --name is given, and somebody, where --identities are. The exit code is 0 if all holds.
"""

Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--policy-key",
        metavar="FILE.pub",
        help="A public key that must have signed the bundle. Again for another.",
    ),
]


Identities = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The server's file of identities, to tell whether the match concerns anybody."
    ),
]
UnmatchedPolicies = Annotated[
    Unmatched, typer.Option(help="As saegis serve: what a match that concerns nobody or nothing is.")
]


@options.grouped
def validate(
    bundle: BundlePath,
    *,
    subject: Subject,
    keys: Keys = None,
    identities: Identities = None,
    unmatched_policies: UnmatchedPolicies = Unmatched.REFUSE,
    json: options.Json = False,
) -> None:
    """Check a bundle as a server would, and show every problem with its file and line."""
    trusted = _load_keys(keys or ())
    report = _report(bundle, lambda: _checker(subject, trusted, identities, unmatched_policies))
    if json:
        print_json(report.plain())
    else:
        for line in report.lines(bundle):
            console().print(line, soft_wrap=isinstance(line, Text))
    if report.problems:
        raise typer.Exit(FAILURE)


def _load_keys(paths: Sequence[Path]) -> list[Ed25519PublicKey]:
    """The public keys of these files; ends the command if one holds none."""
    from saegis_server.policy.bundle.signing import load_public_key
    from saegis_server.policy.errors import KeyFileError

    try:
        return [load_public_key(path) for path in paths]
    except KeyFileError as error:
        raise fail(str(error), f"make a key with: {own_command()} policy keygen", USAGE) from error


@dataclass(frozen=True, slots=True)
class _Report:
    """The result of a check. bundle: None if it cannot be read; signed_by: empty if no key is required."""

    problems: tuple[Problem, ...]
    bundle: Bundle | None = None
    signed_by: str = ""
    cases: tuple[CaseResult, ...] = field(default=())
    warnings: tuple[Problem, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The report in JSON form."""
        plain: dict[str, Any] = {
            "valid": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
            "warnings": [asdict(problem) for problem in self.warnings],
        }
        if self.bundle is not None:
            policy = self.bundle.policy
            plain["policy"] = {
                "name": policy.name,
                "serial": policy.serial,
                "revision": policy.revision,
                "digest": self.bundle.digest,
                "signed_by": self.signed_by,
            }
            plain["cases"] = [
                {"name": case.name, "passed": case.passed, "failures": list(case.failures)}
                for case in self.cases
            ]
        return plain

    def lines(self, path: Path) -> list[Table | Text]:
        """The report for people: the problems, or a summary of the bundle."""
        if self.problems:
            count = len(self.problems)
            return [problem_table(self.problems, f"{path}: {count} problem{'' if count == 1 else 's'}")]
        assert self.bundle is not None  # noqa: S101 - without a bundle there is a problem
        policy = self.bundle.policy
        signed = f", signed by {self.signed_by}" if self.signed_by else ""
        outcome = Text.assemble(
            ("valid: ", "bold green"),
            f"{self.bundle.revision_name}, serial {policy.serial}, digest {self.bundle.digest[:12]}{signed}; "
            f"{len(policy.rules)} rules, {len(self.cases)} cases passed",
        )
        if not self.warnings:
            return [outcome]
        return [outcome, problem_table(self.warnings, "warnings", "bold yellow")]


def _checker(
    subject: Subject, keys: Sequence[Ed25519PublicKey], identities: Path | None, unmatched: Unmatched
) -> Checker:
    """A checker that checks bundles as a server of this subject would."""
    from dataclasses import replace

    from saegis_server.policy.store.checking import Checker

    world = subject.world()
    if identities is not None:
        world = replace(world, callers=_callers(identities))
    return Checker(world, keys, unmatched)


def _callers(identities: Path) -> Callable[[], Callers]:
    """Who may call, by a file of identities; ends the command if the file is wrong."""
    from saegis_server.rpc.auth.identities import IdentitiesError, read_identities

    try:
        callers = read_identities(identities).callers
    except IdentitiesError as error:
        hint = f"{own_command()} token new --help shows what the file looks like"
        raise fail(str(error), hint, USAGE) from error
    return lambda: callers


def _report(path: Path, checker: Callable[[], Checker]) -> _Report:
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.errors import PolicyError

    try:
        bundle = Bundle.read(path)
    except PolicyError as error:
        return _Report(error.problems)
    examined = checker().examine(bundle, None)
    return _Report(examined.problems, bundle, examined.signed_by, examined.cases, examined.warnings)
