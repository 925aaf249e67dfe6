"""Write what the documents say of the shipped weights: tables of figures and, with --live, answers.

A document's block is what stands between `<!-- figures: NAME -->` and `<!-- end -->`. It is made from the
shipped manifest, from the manifests in docs/seeds or, with --live, from the demo's answers. With --check it
is told whether the blocks that need no live answer are current.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saegis_lab.evaluation.experiment import RedirectFile
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
from saegis_server.reference import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "docs" / "seeds"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/polyglot.md")
BLOCK = re.compile(r"(<!-- figures: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: The demo's answers are as wide as the documents' code blocks may be.
WIDTH = 108


def markdown(table: Table) -> str:
    """A table of the command line in Markdown, without its title."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    head, *rows = ("| " + " | ".join(row) + " |" for row in zip(*columns, strict=True))
    return "\n".join([head, "|---|" + "---:|" * (len(columns) - 1), *rows])


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


def seeds() -> str:
    """The runs side by side, and which of them ships."""
    runs = [Manifest.load(path) for path in sorted(SEEDS.glob("*.json"))]
    if not runs:
        return "No run's manifest is here yet."
    tables = (seeds_table(runs), seeds_parts_table(runs), seeds_filter_table(runs))
    titles = ("", *(f"{str(table.title).capitalize()}:\n\n" for table in tables[1:]))
    parts = [title + markdown(table) for title, table in zip(titles, tables, strict=True)]
    return "\n\n".join([*parts, f"What ships: {shipping_line(runs)}."])


#: The blocks that are made from manifests.
STORED: Mapping[str, Callable[[], str]] = {
    "model": lambda: markdown(model_table(manifest())),
    "ban": ban,
    "landmark": landmark,
    "filter": lambda: of_filter(whole_filter),
    "parts": lambda: of_filter(lambda made: markdown(parts_table(made))),
    "attack": lambda: of_filter(lambda made: markdown(attack_table(made))),
    "seeds": seeds,
}


def demo() -> dict[str, Any]:
    """What the demo shows, from a server of its own."""
    command = [sys.executable, "-m", "saegis_server.cli", "demo", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - our own command
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


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


def demo_text(shown: Mapping[str, Any], languages: Sequence[str] | None = None) -> str:
    """The demo's answers and a receipt, as a code block; of the redirect to the landmark in some languages,
    or all."""
    landmark, receipt = shown["landmark"], shown["receipt"]
    asked = [answer for answer in landmark["answers"] if languages is None or answer["language"] in languages]
    harmful = [
        {**answer, "filtered": f"{answer['filtered']} (ended by the policy)".strip()}
        if answer["stopped"]
        else answer
        for answer in shown["filter"]["answers"]
    ]
    (site,) = receipt["receipt"]["sites"]
    largest = site["largest_relative_norm"]
    moved = "" if largest is None else f", largest move {largest:.3f} of ‖x‖"
    lines = [
        f"1. {len(landmark['redirect']['features'])} features, one a subject, are redirected to "
        f"{landmark['feature']['index']}, labelled {landmark['feature']['label']!r}",
        "",
        pairs(asked, "unsteered", "redirected", ("unsteered", "redirected")),
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
        + ", ".join(rule["name"] for rule in receipt["receipt"]["rules"]),
    ]
    return "\n".join(["```text", *lines, "```"])


def answers(shown: Mapping[str, Any]) -> str:
    """What the model answers, unsteered, in every language."""
    rows = (
        f"| {answer['language']} | {answer['prompt']} → {answer['unsteered']} |"
        for answer in shown["landmark"]["answers"]
    )
    return "\n".join(["| | |", "|---|---|", *rows])


#: The blocks that are made from the demo's answers.
LIVE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "answers": answers,
    "demo": demo_text,
    "demo-short": lambda shown: demo_text(shown, ("en", "zh", "sw")),
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
    parser.add_argument("--live", action="store_true", help="write the answers too, from a demo run here")
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
