"""The command `saegis features choose`: the features for a ban, from labelled texts in a few languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, print_json
from saegis_lab.cli import offline
from saegis_lab.cli.files import check_places, codes, note_written
from saegis_lab.cli.tables import titled
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from saegis_lab.cli.offline import Subject
    from saegis_lab.training.selection import Contrast, RankedFeature
    from saegis_lab.training.texts import TokenTruth
    from saegis_server.sae.labels import Labels

EPILOG = f"""
[bold]Examples[/bold]

saegis features choose --model ./model --sae ./sae --texts texts.jsonl --chosen-from en,zh --out ban.json

saegis features choose --model ./model --sae ./sae --texts texts.jsonl --chosen-from en,zh --label poison
{offline.PICTURES_HELP}
Only texts in --chosen-from are read. A feature must hold in every one of them: at least --min-precision of
its activation there lies on wanted texts. Two unlike languages tell features of a meaning from those of
words. Then measure the other languages with [bold]saegis eval coverage[/bold], and the strength with
[bold]saegis eval ban[/bold].
"""
_ALL = 1 << 31


@options.grouped
def choose(
    *,
    source: offline.Source,
    chosen_from: Annotated[str, typer.Option(metavar="CODE,CODE...", help="The languages to choose from.")],
    wanted: offline.Wanted,
    min_precision: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Least share of a feature's activation on wanted texts."),
    ] = 0.9,
    top: Annotated[int, typer.Option(min=1, help="How many features to choose, at most.")] = 24,
    strength: Annotated[float, typer.Option(min=0.0, help="The strength that the ban file states.")] = 2.0,
    site: offline.SiteName = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the ban file for saegis eval ban.")
    ] = None,
    raw: offline.Raw = False,
    placement: offline.Placement,
    json: options.Json = False,
) -> None:
    """Choose the features that fire on wanted texts in every one of some languages; no server is needed.

    Wanted are the texts of a label, or by default those that are harmful.
    """
    check_places(out, None)
    languages = codes(chosen_from)
    known = source.labelled_texts(pictured=True)
    if unknown := [code for code in languages if code not in {text.language for text in known}]:
        there = ", ".join(sorted({text.language for text in known}))
        raise fail(f"--chosen-from: no text is in {unknown[0]!r}", f"the texts are in {there}", USAGE)
    if not languages:
        raise fail("--chosen-from names no language", "give some, such as --chosen-from en,zh", USAGE)
    texts = tuple(text for text in known if text.language in languages)
    is_wanted, words = wanted.test(texts)
    with stage_display(json=False) as display:
        subject = offline.load_subject(source, site, texts, raw, placement, display)
        contrasts = _contrasts(subject, is_wanted, languages, display)
    chosen = _chosen(contrasts, min_precision, top, words)
    if out is not None:
        from saegis_lab.evaluation.experiment import BanFile

        BanFile(tuple(ranked.feature for ranked in chosen), strength, languages).save(out)
    if json:
        print_json({"wanted": words, "languages": languages, "features": chosen})
        return
    console().print(_table(chosen, contrasts, subject.placed.loaded.labels, words))
    subject.note_cut()
    if out is not None:
        note_written(out)


def _contrasts(
    subject: Subject,
    is_wanted: Callable[[TokenTruth], bool],
    languages: Sequence[str],
    display: StageDisplay,
) -> dict[str, Contrast]:
    """The contrast in each language; ends the command where one has no wanted texts, or no others."""
    from saegis_lab.training.selection import contrast
    from saegis_lab.training.statistics import FeatureStatistics

    statistics = FeatureStatistics(subject.sae.features, subject.loaded.model.device)
    for batch in subject.batches(subject.sae, display):
        statistics.add(batch.activations, subject.truths_of(batch))
    try:
        return contrast(statistics, is_wanted, languages)
    except ValueError as error:
        display.close()
        raise fail(str(error), code=USAGE) from error


def _chosen(
    contrasts: Mapping[str, Contrast], precision: float, limit: int, words: str
) -> list[RankedFeature]:
    """The chosen features; where there are none, ends the command and states the best precision."""
    from saegis_lab.training.selection import choose_features

    chosen = choose_features(contrasts, precision, limit)
    if not chosen:
        best = max(
            (
                min(figures.precision for figures in candidate.by_language.values())
                for candidate in choose_features(contrasts, 0.0, limit=_ALL)
            ),
            default=None,
        )
        if best is None:
            raise fail(f"no feature fires on {words} texts in all of {', '.join(contrasts)}")
        raise fail(
            f"no feature has a precision of {precision:g} on {words} texts in all of {', '.join(contrasts)}",
            f"the best has {best:.2f} in its worst language: lower --min-precision, or give fewer languages",
        )
    return chosen


def _table(
    chosen: Sequence[RankedFeature], contrasts: Mapping[str, Contrast], labels: Labels, words: str
) -> Table:
    """One row for each feature, best first, with two columns for each language."""
    title = f"{len(chosen)} features for {words} texts; score is the mean activation on them in the worst "
    title += "language"
    columns = [f"{code}: {name}" for code in contrasts for name in ("fires on wanted / others", "precision")]
    table = titled(title, ("index", "score", *columns, "label"), words=("label",))
    for ranked in chosen:
        cells = []
        for figures in ranked.by_language.values():
            cells += [f"{figures.rate_on:.1%} / {figures.rate_off:.1%}", f"{figures.precision:.2f}"]
        label = labels.get(ranked.feature)
        table.add_row(
            str(ranked.feature), f"{ranked.score:.3f}", *cells, Text(label.label if label else "(no label)")
        )
    return table
