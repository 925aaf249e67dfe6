"""The command `saegis policy calibrate`: write the least strength of a ban that is enough into its bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.output import FAILURE, USAGE, console, fail, notes, print_json
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, inputs, note_written, strengths_of
from saegis_lab.cli.tables import MARK, marked, number, strengths_table, titled, verdict
from saegis_server.cli.policy.world import read_bundle
from saegis_server.cli.stages import stage_display

if TYPE_CHECKING:
    from saegis import Client
    from saegis_lab.evaluation.calibration import BanReport
    from saegis_lab.evaluation.experiment import Decoding, Prompt
    from saegis_lab.evaluation.policy_calibration import CoverageRow
    from saegis_lab.evaluation.scorers import BanScorers
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.schema.policy import Rule

EPILOG = """
[bold]Examples[/bold]

saegis policy calibrate ./my-policy --rule no-poison --prompts prompts.jsonl --scorer words.json

saegis policy calibrate ./my-policy --rule no-poison --prompts prompts.jsonl --scorer mypackage.scoring:harm
--calibrate-on en,zh --strengths 0,1,2,4 --target 0.05

saegis policy calibrate ./my-policy --prompts prompts.jsonl --scorer words.json --server 127.0.0.1:50051

[bold]What is written[/bold]

The strength into the rule, in the file where it stands, of which nothing else changes; and calibration.json,
with what the strength does in every language of the prompts, and every bar that is missed there: it is marked
with ! in the tables and named below them, whether the language was asked for or not. If no strength is enough
in each language that was, that is said, nothing is written, and the exit code is 1. Raise the serial, test
and sign the bundle afterwards.

The server measures bans that the command asks it for, so it must allow them, and should not run under the
policy itself. Prompts and word lists are written as for saegis eval ban.
"""

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The bundle's directory.")
]
RuleId = Annotated[
    str, typer.Option("--rule", metavar="ID", help="The ban. May be left out where there is one.")
]
Prompts = Annotated[
    Path,
    eval_options.in_files(
        exists=True, dir_okay=False, help="JSONL, one prompt a line: prompt, language, harmful."
    ),
]
Scorer = Annotated[
    str,
    eval_options.in_files(
        metavar="FILE|MODULE:FUNCTION", help="Word lists with 'harm', or a function that scores harm."
    ),
]
CalibrateOn = Annotated[
    str | None,
    eval_options.in_calibration(
        metavar="CODE,CODE...",
        help="Languages in which a strength must do enough. By default all with harmful and benign prompts.",
    ),
]
Strengths = Annotated[
    str, eval_options.in_calibration(metavar="STRENGTH,STRENGTH...", help="What to choose among.")
]


@options.grouped
def calibrate(
    folder: Folder,
    prompts: Prompts,
    scorer: Scorer,
    rule: RuleId = "",
    calibrate_on: CalibrateOn = None,
    *,
    goal: eval_options.Goal,
    strengths: Strengths = "0,0.5,1,1.5,2,3",
    max_tokens: eval_options.MaxTokens = 80,
    concurrency: eval_options.Concurrency = 8,
    json: options.Json = False,
    connection: Connection,
) -> None:
    """Find the least strength of a ban that does enough against harm and little else, and write it.

    In each language harm must fall to --target times what it is without the ban, and divergence on benign
    prompts stay under --max-kl. Languages in which there is no harm without the ban must show none under it.
    """
    bundle = read_bundle(folder)
    from saegis_lab.evaluation.calibration import BanReport, Bars, check_calibration, judged_languages
    from saegis_lab.evaluation.policy_calibration import ban_rule

    with inputs():
        ban = ban_rule(bundle, rule)
        numbers = strengths_of(strengths)
        asked, scorers, decoding = _measured_with(prompts, scorer, max_tokens)
        judged = judged_languages(None if calibrate_on is None else codes(calibrate_on), asked)
        check_calibration(judged, judged, judged)
    _check_writable(folder, bundle, ban)
    with connection.client() as client:
        result, ruled = _measure(client, ban, asked, numbers, scorers, decoding, concurrency)
        report = BanReport.of(result, judged, Bars(goal.target, goal.max_kl, goal.max_perplexity))
    written = _write(folder, bundle, ban, report, asked, ruled)
    _show(report, asked, ban.id, written, json)
    if not written:
        raise typer.Exit(FAILURE)
    _note(bundle)


def _measured_with(
    prompts: Path, scorer: str, max_tokens: int
) -> tuple[tuple[Prompt, ...], BanScorers, Decoding]:
    """The prompts, scorers for their languages, and the decoding. Raises ValueError."""
    from saegis_lab.evaluation.experiment import Decoding, languages_of, load_prompts
    from saegis_lab.evaluation.scorers import ban_scorers

    asked = load_prompts(prompts)
    return asked, ban_scorers(scorer, languages_of(asked)), Decoding(max_tokens=max_tokens)


def _check_writable(folder: Path, bundle: Bundle, rule: Rule) -> None:
    """End the command before the measurement if its result could not be written."""
    source = folder / bundle.sources[rule.id].file
    for path in (folder, source.parent, source):
        if not os.access(path, os.W_OK):
            raise fail(f"{path} cannot be written", "calibrate a copy of the bundle that can", USAGE)


def _measure(
    client: Client,
    rule: Rule,
    prompts: Sequence[Prompt],
    strengths: Sequence[float],
    scorers: BanScorers,
    decoding: Decoding,
    concurrency: int,
) -> tuple[Any, bool]:
    """The ban's figures, and whether policies of the server's own were in force."""
    from saegis_lab.evaluation.ban import measure_ban
    from saegis_lab.evaluation.policy_calibration import banned_features
    from saegis_lab.evaluation.requests import Requests

    features = banned_features(client, rule)
    first = client.generate(messages=prompts[0].messages, max_tokens=1, temperature=0.0)
    ruled = first.receipt.ruled
    if ruled:
        by = ", ".join(f"{rule.policy}/{rule.rule}" for rule in first.receipt.rules) or "not told which"
        notes().print(
            f"warning: the server steers by policies of its own ({by}); what is measured comes on top of "
            "them. Calibrate on a server that runs without this policy.",
            style="bold yellow",
            markup=False,
            soft_wrap=True,
        )
    with stage_display(json=False) as display:
        requests = Requests(client, concurrency, display)
        return measure_ban(requests, prompts, features, strengths, scorers, [decoding]), ruled


def _write(
    folder: Path, bundle: Bundle, rule: Rule, report: BanReport, prompts: Sequence[Prompt], ruled: bool
) -> tuple[Path, ...]:
    """Write the calibrated strength, if there is one, into the bundle; returns the files written."""
    if report.calibration is None or report.calibration.strength is None:
        return ()
    from saegis_lab.evaluation.policy_calibration import calibrated_files, rule_calibration
    from saegis_server.policy.errors import PolicyError

    try:
        files = calibrated_files(bundle, rule, rule_calibration(report, prompts, ruled))
        return tuple(_replace(folder / path, data) for path, data in files.items())
    except (PolicyError, ValueError) as error:
        raise fail(str(error), f"the strength is {report.calibration.strength:g}") from error
    except OSError as error:
        problem = f"{error.filename} cannot be written: {error.strerror}"
        raise fail(problem, f"the strength is {report.calibration.strength:g}") from error


def _replace(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        if path.exists():
            beside.chmod(path.stat().st_mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _show(
    report: BanReport, prompts: Sequence[Prompt], rule: str, written: Sequence[Path], json: bool
) -> None:
    from saegis_lab.evaluation.policy_calibration import coverage

    rows = coverage(report, prompts)
    if json:
        print_json(_plain(report, rows, rule, written))
        return
    console().print(strengths_table(report, report.result.decodings[0]))
    if written:
        console().print(_coverage_table(report, rows, f"rule {rule}, strength {report.strength:g}"))
    console().print(verdict(report), soft_wrap=True)
    for path in written:
        note_written(path)


def _plain(
    report: BanReport, rows: Sequence[CoverageRow], rule: str, written: Sequence[Path]
) -> Mapping[str, Any]:
    return {
        "rule": rule,
        "strength": report.strength if written else None,
        "calibration": report.calibration,
        "coverage": list(rows) if written else [],
        "misses": list(report.misses),
        "result": report.result,
        "written": list(map(str, written)),
    }


def _coverage_table(report: BanReport, rows: Sequence[CoverageRow], title: str) -> Table:
    """A row for each language: harm without the ban and under it, their ratio, and the other figures."""
    names = ("harm", "falls by", "refused", "KL", "× perplexity, harmful", "benign")
    columns = ("language", "judged", *names, "prompts, harmful", "benign")
    table = titled(title, columns, words=("language", "judged"))
    table.caption = (
        "× perplexity: over that of benign answers without the ban; - where there is nothing to tell"
    )
    if report.warnings:
        table.caption += f"; {MARK}: misses its bar, see below"
    (decoding,) = report.result.decodings
    for row in rows:
        missed = report.missed(row.language, report.strength, decoding.temperature)
        harm = f"{number(row.harm_before, '.3f')} → {number(row.harm_after, '.3f')}"
        refused = " → ".join(number(share, ".0%") for share in (row.refused_before, row.refused_after))
        table.add_row(
            row.language,
            "yes" if row.judged else "no",
            marked(harm, "harm", missed),
            number(row.factor, ".1f", "×") if row.harm_after or not row.harm_before else "all",
            marked(refused, "refusal", missed),
            marked(number(row.kl, ".4f"), "kl", missed),
            marked(number(row.harmful_perplexity, ".2f"), "perplexity", missed),
            marked(number(row.benign_perplexity, ".2f"), "benign_perplexity", missed),
            str(row.harmful_prompts),
            str(row.benign_prompts),
        )
    return table


def _note(bundle: Bundle) -> None:
    """Say what is left to do with the changed bundle."""
    left = [f"raise its serial, {bundle.policy.serial}, where a server has that already"]
    if bundle.signature is not None:
        left.append("sign it again: its signature holds no longer")
    notes().print(f"next:  {'; '.join(left)}", markup=False, soft_wrap=True)
