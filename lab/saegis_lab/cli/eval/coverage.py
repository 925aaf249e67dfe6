"""The command `saegis eval coverage`: how well features found in some languages fire in the others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from saegis.cli import options
from saegis.cli.output import USAGE, fail
from saegis_lab.cli import offline
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, features_of, inputs
from saegis_lab.cli.tables import titled
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saegis_lab.cli.offline import Subject
    from saegis_lab.evaluation.coverage import Coverage, CoverageCounter
    from saegis_lab.training.texts import TokenTruth

EPILOG = f"""
[bold]Examples[/bold]

saegis eval coverage --model ./model --sae ./sae --texts texts.jsonl --features ban.json --plot coverage.png

saegis eval coverage --model ./model --sae ./sae --texts texts.jsonl --features 23 --label poison --json
{offline.TEXTS_HELP}
Recall is the share of wanted tokens on which a feature fires, precision the share of its firings that are on
wanted tokens.
"""


@options.grouped
def coverage(
    *,
    source: offline.Source,
    features: Annotated[
        str, typer.Option(metavar="FILE|INDEX,INDEX...", help="A ban file, or indices of features.")
    ],
    wanted: offline.Wanted,
    chosen_from: eval_options.ChosenFrom = None,
    site: offline.SiteName = None,
    raw: offline.Raw = False,
    placement: offline.Placement,
    output: eval_options.Output,
) -> None:
    """Measure where features fire, language by language, one by one and as a set; no server is needed.

    Wanted are the texts of a label, or by default those that are harmful.
    """
    output.check()
    with inputs():
        indices, stated = features_of(features)
    texts = source.labelled_texts()
    is_wanted, words = wanted.test(texts)
    with stage_display(json=False) as display:
        subject = offline.load_subject(source, site, texts, raw, placement, display)
        counter = _counted(subject, indices, is_wanted, display)
    with inputs():
        result = counter.result(words, codes(chosen_from) if chosen_from is not None else stated)
    from saegis_lab.evaluation.plots import plot_coverage

    tables = (_set_table, _recall_table, _precision_table)
    output.write(result, lambda: (table(result) for table in tables), partial(plot_coverage, result))
    if not output.json:
        subject.note_cut()


def _counted(
    subject: Subject,
    features: Sequence[int],
    is_wanted: Callable[[TokenTruth], bool],
    display: StageDisplay,
) -> CoverageCounter:
    """The features counted over all texts; ends the command where the SAE has no such feature, or
    decides by rank."""
    from saegis_lab.evaluation.coverage import CoverageCounter, with_features

    try:
        narrow = with_features(subject.sae, features)
    except (IndexError, ValueError) as error:
        display.close()
        raise fail(f"--features: {error}", "give the SAE that the features are of", USAGE) from error
    counter = CoverageCounter(features, is_wanted, subject.loaded.model.device)
    for batch in subject.batches(narrow, display):
        counter.add(batch.texts, subject.truths_of(batch), batch.activations)
    return counter


def _set_table(result: Coverage) -> Table:
    """A row for each language: what the features do together."""
    title = f"{len(result.features)} features together, on {result.wanted} texts"
    names = ("wanted texts", "covered", "wanted tokens", "covered", "other tokens, fired on")
    table = titled(title, ("language", *names))
    for code, figures in result.languages.items():
        table.add_row(
            _language(code, result),
            str(figures.wanted_texts),
            f"{figures.texts:.0%}",
            str(figures.wanted_tokens),
            f"{figures.tokens:.1%}",
            "-" if figures.other_tokens is None else f"{figures.other_tokens:.1%}",
        )
    return table


def _recall_table(result: Coverage) -> Table:
    columns = ("feature", *(_language(code, result) for code in result.languages), "worst")
    table = titled("recall: share of wanted tokens on which a feature fires", columns, words=("worst",))
    for row in result.features:
        cells = [f"{row.recall[code]:.3f}" for code in result.languages]
        table.add_row(str(row.feature), *cells, row.worst)
    return table


def _precision_table(result: Coverage) -> Table:
    columns = ("feature", *(_language(code, result) for code in result.languages))
    title = "precision: share of a feature's firings that are on wanted tokens"
    table = titled(title, columns, words=())
    for row in result.features:
        shares = [row.precision[code] for code in result.languages]
        table.add_row(str(row.feature), *("-" if share is None else f"{share:.2f}" for share in shares))
    return table


def _language(code: str, result: Coverage) -> str:
    """A language, marked where the features were found in it."""
    return f"{code} (found)" if code in result.found_in else code
