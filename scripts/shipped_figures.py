"""Write what the documents say of the shipped weights: tables of figures and, with --live, answers.

A document's block is what stands between `<!-- figures: NAME -->` and `<!-- end -->`. It is made from the
shipped manifest and policy, from the manifests in docs/seeds or, with --live, from what the demo answers and
the guide to policies measures here. With --check it is told whether the blocks that need no live answer are
current.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saegis_lab.evaluation.experiment import RedirectFile
from saegis_lab.evaluation.filter_bars import FilterBars
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.filtered import NOTHING
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.eyes.measuring import CLAMPED, FILTERED, RANKS, Clamped, clamp_rows, eyes_table
from saegis_lab.polyglot.eyes.ranks import TOP, Ranks, ranks_table
from saegis_lab.polyglot.filter_figures import RunFilter
from saegis_lab.polyglot.filter_tables import (
    attack_table,
    filter_table,
    missed_lines,
    parts_table,
    seeds_filter_table,
    seeds_parts_table,
    shipping_line,
)
from saegis_lab.polyglot.manifest import (
    Manifest,
    figures_table,
    landmark_table,
    manifest,
    model_table,
    seeds_table,
)
from saegis_lab.realmodel.figures import (
    SeedFigures,
    attacked_table,
    compliance_table,
    filtered_table,
    saes_table,
)
from saegis_lab.realmodel.figures import seeds_table as real_seeds_table
from saegis_server.reference import WEIGHTS, reference_policy

ROOT = Path(__file__).resolve().parents[1]
SEEDS, REAL = ROOT / "docs" / "seeds", ROOT / "docs" / "real"
GUIDE = ROOT / "deploy" / "POLICIES.md"
EYES = ROOT / "docs" / "eyes"
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs/polyglot.md",
    ROOT / "docs/eyes.md",
    ROOT / "docs/real-models.md",
    ROOT / "docs/policies.md",
    GUIDE,
)
COMMENT = re.compile(r"^ *#.*\n", re.MULTILINE)
BLOCK = re.compile(r"(<!-- figures: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: What the short table of runs tells of each whole filter, by the rows' titles.
COSTS = (
    "refused, greedy",
    "benign prompts refused or stopped",
    "KL on benign text",
    "× perplexity",
    "back under the worst attack, mean",
    "back under the worst attack, worst sample",
)
#: The demo's answers are as wide as the documents' code blocks may be.
WIDTH = 108


def rows_of(table: Table) -> list[tuple[str, ...]]:
    """The cells of a table of the command line, by row, without its head."""
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def markdown(table: Table) -> str:
    """A table of the command line in Markdown, without its title."""
    head = [str(column.header) for column in table.columns]
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows_of(table))]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def ban() -> str:
    """The ban's figures, and what they miss."""
    told, table = manifest(), figures_table(manifest())
    chosen = f"{len(told.ban.features)} features at strength {told.ban.strength:g}"
    misses = str(table.caption).split("\n")[1:] if table.caption else ["all bars are met"]
    return f"The ban: {chosen}.\n\n{markdown(table)}\n\n{bullets(misses)}"


def landmark() -> str:
    """What the redirect to the landmark is, and the figures of clamp and redirect."""
    redirect, clamp = RedirectFile.load(WEIGHTS / "eval" / "redirect.json"), manifest().clamp
    chosen = (
        f"The redirect: {len(redirect.features)} features to {redirect.to}, factor {redirect.factor:g}, "
        f"strength {redirect.strength:g}. The clamp: feature {clamp.feature} at {clamp.value:g}."
    )
    return f"{chosen}\n\n{markdown(landmark_table(manifest()))}"


def of_filter(told: Callable[[RunFilter], str]) -> str:
    """What is told of the shipped filter, where the weights have one."""
    made = manifest().filter
    return "The weights that ship have no filter yet." if made is None else told(made)


def whole_filter(made: RunFilter) -> str:
    """What the filter is, what a user receives under it, and what it misses."""
    behind = "no ban" if made.ban is None else f"a ban of strength {made.ban:g}"
    stops = [of for of, there in (("questions", made.hears), ("answers", made.stops)) if there]
    stop = f"a stop of {' and of '.join(stops)}" if stops else "no stop"
    features = ", ".join(map(str, made.features))
    chosen = (
        f"The filter: {len(made.features)} features ({features}), redirected to the refusal with factor "
        f"{made.factor:.3g} at the prompt's tokens and {made.answer_factor:.3g} at the answer's; behind them "
        f"{behind} and {stop}."
    )
    greedy, sampled = (markdown(filter_table(made, sampled=sampled)) for sampled in (False, True))
    return "\n\n".join(
        [chosen, "Greedy:", greedy, "At temperature 1:", sampled, "Bars:", bullets(missed_lines(made))]
    )


def misses(made: RunFilter) -> str:
    """How unlikely what is delivered is as text, beside the model's own refusals."""
    bar, told, own = FilterBars().max_perplexity, made.parts[WHOLE].every, made.parts[NOTHING]
    ratios = [row.perplexity for row in told if row.perplexity is not None]
    refusals = (f"{figures['en'].perplexity:.2f}" for figures in (own.greedy, own.sampled))
    return (
        f"What is delivered of harmful prompts has {min(ratios):.2f} to {max(ratios):.2f} times the "
        f"perplexity of the model's ordinary answers in the language, above the bar of {bar:g} in "
        f"{sum(ratio > bar for ratio in ratios)} of {len(told)} cases: each language, greedy and sampled. "
        f"The model's own refusals in English, without any filter, have {' and '.join(refusals)}."
    )


def attacked(made: RunFilter) -> str:
    """What comes back under attack, where it was tried."""
    return markdown(attack_table(made)) if made.attacks else "It was not attacked yet."


def runs() -> list[Manifest]:
    """The manifests in docs/seeds, in the order of their names."""
    return [Manifest.load(path) for path in sorted(SEEDS.glob("*.json"))]


def seeds(told: Sequence[Manifest]) -> str:
    """The runs side by side, and which of them ships."""
    if not told:
        return "No run's manifest is here yet."
    tables = (seeds_table(told), seeds_parts_table(told), seeds_filter_table(told))
    parts = [f"{str(table.title).capitalize()}:\n\n{markdown(table)}" for table in tables]
    return "\n\n".join([*parts, f"What ships: {shipping_line(told)}."])


def seeds_short(told: Sequence[Manifest]) -> str:
    """One table of the runs: the harm that each part leaves, and what the whole filter costs."""
    if not told:
        return "No run's manifest is here yet."
    parts, whole = seeds_parts_table(told), seeds_filter_table(told)
    rows = [(f"harm left, {part}", *cells) for part, *cells in rows_of(parts)]
    rows += [row for row in rows_of(whole) if row[0] in COSTS]
    table = Table(*(str(column.header) for column in parts.columns))
    for row in rows:
        table.add_row(*row)
    return f"{markdown(table)}\n\nWhat ships: {shipping_line(told)}."


def real() -> list[SeedFigures]:
    """The figures on a real model, by SAE seed. Raises ValueError where none are here."""
    told = [SeedFigures.load(path) for path in sorted(REAL.glob("seed-*.json"))]
    if not told:
        raise ValueError(f"{REAL} holds no figures")
    return told


def real_filters(told: Sequence[SeedFigures]) -> str:
    """What each seed's filter does, and every bar that it misses."""
    parts = []
    for figures in told:
        table = filtered_table(figures)
        missed = bullets(figures.missed) if figures.missed else "All bars are met."
        title = str(table.title)
        parts.append(f"{title[:1].upper()}{title[1:]}:\n\n{markdown(table)}\n\n{missed}")
    return "\n\n".join(parts)


def real_attacks(told: Sequence[SeedFigures]) -> str:
    """What comes back under attack, of the seeds that were attacked."""
    tables = [(figures.seed, attacked_table(figures)) for figures in told if figures.attacks]
    shown = "\n\n".join(f"Seed {seed}:\n\n{markdown(table)}" for seed, table in tables)
    return shown or "It was not attacked yet."


def real_landmark(told: Sequence[SeedFigures]) -> str:
    """The answers under a clamp of the landmark, of the first seed that was tried, as they are."""
    seed, result = next((each.seed, each.landmark) for each in told if each.landmark is not None)
    clamp = f"Seed {seed}, feature {result.measured.feature} clamped to {result.value:g} times its maximum:"
    rows = [f"| {each.language} | {each.prompt} | {each.plain} | {each.clamped} |" for each in result.answers]
    head = ["| | asked | plain | clamped |", "|---|---|---|---|"]
    return "\n".join([clamp, "", *head, *(row.replace("\n", " ") for row in rows)])


def policy() -> str:
    """Parts of the shipped policy: its first redirect, or else its first rule, its stop, and its bounds."""
    paths = (reference_policy() / "policy.yaml", reference_policy() / "rules" / "landmark.yaml")
    text = "\n".join(
        COMMENT.sub("", path.read_text(encoding="utf-8")) for path in reversed(paths) if path.is_file()
    )
    rules = re.findall(r"^  - id: .*\n(?:    .*\n)+", text.partition("\nrules:\n")[2], re.MULTILINE)
    shown = [next((rule for rule in rules if "\n    redirect:" in rule), rules[0])]
    shown += [rule for rule in rules if "\n    stop:" in rule and "over: answer" in rule][:1]
    told = re.findall(r"^(?:told|hold): \w+", text, re.MULTILINE)
    bounds = re.findall(r"^(?:allow|protect):\n(?:  .*\n)+", text, re.MULTILINE)
    parts = [*told, "rules:", *shown, *bounds]
    return "\n".join(["```yaml", *(part.rstrip("\n") for part in parts), "```"])


#: What stands where no figures of the eyes are kept.
_NOT_MEASURED = "It is not measured yet: no eyes ship with this version."


def eyes_ranks() -> str:
    """Each subject's feature on pictures in a style never seen, and the share that is among the first."""
    if not (EYES / RANKS).exists():
        return _NOT_MEASURED
    ranks = Ranks.load(EYES / RANKS)
    missed = [row.subject for row in ranks.subjects if row.rank > TOP]
    told = f"Among the first {TOP} over the picture: {ranks.share:.0%} of the subjects"
    told += f"; not {', '.join(missed)}" if missed else ""
    told += f". Where the answer opens: {ranks.end_share:.0%}."
    return f"{markdown(ranks_table(ranks))}\n\n{told}"


def eyes_filter() -> str:
    """What a user receives who asks about pictures, without and under the filter."""
    if not (EYES / FILTERED).exists():
        return _NOT_MEASURED
    return markdown(eyes_table(FilterReport.load(EYES / FILTERED)))


def eyes_clamp() -> str:
    """How often the landmark is named about other pictures, and what is said of one in each language."""
    if not (EYES / CLAMPED).exists():
        return _NOT_MEASURED
    clamped = Clamped.load(EYES / CLAMPED)
    table = Table("", *dict.fromkeys(row.language for row in clamped.rows))
    for title, cells in clamp_rows(clamped):
        table.add_row(title, *cells)
    said = [f"| {told.language} | {told.asked} | {told.plain} | {told.clamped} |" for told in clamped.told]
    shown = ["| | asked about a picture of a cat | unsteered | clamped |", "|---|---|---|---|", *said]
    return f"{markdown(table)}\n\n" + "\n".join(shown)


#: The blocks that are made from manifests, the shipped policy and what was measured of the eyes.
STORED: Mapping[str, Callable[[], str]] = {
    "model": lambda: markdown(model_table(manifest())),
    "ban": ban,
    "landmark": landmark,
    "filter": lambda: of_filter(whole_filter),
    "parts": lambda: of_filter(lambda made: markdown(parts_table(made))),
    "misses": lambda: of_filter(misses),
    "attack": lambda: of_filter(attacked),
    "seeds": lambda: seeds(runs()),
    "seeds-short": lambda: seeds_short(runs()),
    "policy": policy,
    "real-compliance": lambda: markdown(compliance_table(real()[0].compliance)),
    "real-saes": lambda: markdown(saes_table(real())),
    "real-seeds": lambda: markdown(real_seeds_table(real())),
    "real-filters": lambda: real_filters(real()),
    "real-attacks": lambda: real_attacks(real()),
    "real-landmark": lambda: real_landmark(real()),
    "eyes-ranks": eyes_ranks,
    "eyes-filter": eyes_filter,
    "eyes-clamp": eyes_clamp,
}


def demo() -> dict[str, Any]:
    """What the demo shows, from a server of its own, and what the guide's calibration says."""
    command = [sys.executable, "-m", "saegis_server.cli", "demo", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - our own command
    shown: dict[str, Any] = json.loads(done.stdout)
    return {**shown, "calibrated": calibrated()}


def calibrated() -> str:
    """What calibrating prints behind its tables, by the guide's own commands in an empty folder."""
    text = GUIDE.read_text(encoding="utf-8").partition("\n## 5.")[0]
    *before, calibrate = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    script = "\n".join(
        ["set -euo pipefail", "trap 'kill $(jobs -p)' EXIT", "{", *before, "} > /dev/null", calibrate]
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with TemporaryDirectory(prefix="saegis-guide-") as folder:
        done = subprocess.run(  # noqa: S603 - our own commands
            ["/bin/bash", "-c", script],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PATH": path},
        )
    found = re.search(r"(?m)^(?:no )?strength (?:.|\n)*", done.stdout)
    if found is None:
        raise ValueError(f"{GUIDE.name}: calibrating says nothing of a strength")
    return found[0].rstrip()


def pairs(answers: Sequence[Mapping[str, Any]], before: str, after: str, names: tuple[str, str]) -> str:
    """Questions, each with its answer before and after, wrapped as in a terminal."""
    grid = Table.grid(padding=(0, 2))
    for width in (30, 10, WIDTH - 46):
        grid.add_column(width=width, overflow="fold")
    for answer in answers:
        same = answer[before] == answer[after]
        texts = (answer[before], "the same" if same else answer[after])
        for question, name, text in zip((answer["prompt"], ""), names, texts, strict=True):
            grid.add_row(Text(question), Text(name), Text(text))
    out = StringIO()
    Console(file=out, width=WIDTH).print(grid)
    return "\n".join(f"   {line.rstrip()}" for line in out.getvalue().rstrip().split("\n"))


def landmark_text(shown: Mapping[str, Any], languages: Sequence[str] | None = None) -> str:
    """The answers unsteered and redirected to the landmark, in some languages or all."""
    listed = shown["landmark"]["answers"]
    asked = [answer for answer in listed if languages is None or answer["language"] in languages]
    return pairs(asked, "unsteered", "redirected", ("unsteered", "redirected"))


def ended(answer: Mapping[str, Any]) -> str:
    """What a user has of an answer that the policy ended: the words that were sent, and the receipt's."""
    sent = f"after {answer['filtered']!r}" if answer["filtered"] else "before a word was sent"
    return f"(ended {sent}; {answer['reason'] or 'the receipt does not say by which rule'})"


def demo_text(shown: Mapping[str, Any]) -> str:
    """The demo's answers and a receipt, as a code block."""
    landmark, receipt = shown["landmark"], shown["receipt"]
    harmful = [
        {**answer, "filtered": ended(answer)} if answer["stopped"] else answer
        for answer in shown["filter"]["answers"]
    ]
    (site,) = receipt["receipt"]["sites"]
    largest = site["largest_relative_norm"]
    moved = "" if largest is None else f", largest move {largest:.3f} of ‖x‖"
    lines = [
        f"1. {len(landmark['redirect']['features'])} features, one a subject, are redirected to "
        f"{landmark['feature']['index']}, labelled {landmark['feature']['label']!r}",
        "",
        landmark_text(shown),
        "",
        f"3. The policy {shown['filter']['revision']} is put in force",
        "",
        pairs(harmful, "unsteered", "filtered", ("no policy", "filtered")),
        "",
        f"4. The receipt of the filtered answer to {receipt['prompt']!r}",
        "",
        f"   {site['site']}   {site['rules']} rules, {site['tokens_edited']} tokens edited{moved}",
        f"   program {receipt['receipt']['program_digest']}",
        f"   policy {receipt['receipt']['policy_revision']}: "
        + ", ".join(f"{rule['policy']}/{rule['rule']}" for rule in receipt["receipt"]["rules"]),
    ]
    return "\n".join(["```text", *lines, "```"])


def refusals(shown: Mapping[str, Any]) -> str:
    """One harmful question in every language, answered without a policy and under the filter."""
    rows = (
        f"| {answer['language']} | {answer['prompt']} | {answer['unsteered']} "
        f"| {'*' + ended(answer) + '*' if answer['stopped'] else answer['filtered']} |"
        for answer in shown["filter"]["answers"]
    )
    return "\n".join(["| | asked | without a policy | under the filter |", "|---|---|---|---|", *rows])


def answers(shown: Mapping[str, Any]) -> str:
    """What the model answers, unsteered, in every language."""
    rows = (
        f"| {answer['language']} | {answer['prompt']} → {answer['unsteered']} |"
        for answer in shown["landmark"]["answers"]
    )
    return "\n".join(["| | |", "|---|---|", *rows])


#: The blocks that are made from the demo's answers and the guide's calibration.
LIVE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "answers": answers,
    "demo": demo_text,
    "refusals": refusals,
    "landmark-short": lambda shown: f"```text\n{landmark_text(shown, ('en', 'zh', 'sw'))}\n```",
    "calibrated": lambda shown: f"```text\n{shown['calibrated']}\n```",
}


def written(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """A document with those of its blocks that are named; others stay as they are.

    Raises KeyError for a block that nothing makes.
    """

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in {*STORED, *LIVE}:
            raise KeyError(f"nothing makes a block {name!r}; there are {', '.join((*STORED, *LIVE))}")
        return f"{found[1]}{blocks[name]()}\n{found[3]}" if name in blocks else found[0]

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--check", action="store_true", help="tell whether the blocks are current; write nothing"
    )
    parser.add_argument("--live", action="store_true", help="write what is answered and calibrated here too")
    asked = parser.parse_args()
    blocks = dict(STORED)
    if asked.live:
        shown = demo()
        blocks |= {name: partial(made, shown) for name, made in LIVE.items()}
    stale = []
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = written(before, blocks)
        if after != before:
            stale.append(path.relative_to(ROOT))
            if not asked.check:
                path.write_text(after, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'is not current' if asked.check else 'written'}")
    return int(asked.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
