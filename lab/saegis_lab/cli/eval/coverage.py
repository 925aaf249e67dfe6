"""The command `saegis eval coverage`: how well features found in some languages fire in the others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from saegis.cli import options
from saegis.cli.output import USAGE, fail
from saegis_lab.cli import offline
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import check_places, codes, give, inputs
from saegis_lab.cli.tables import titled
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saegis_lab.cli.offline import Subject
    from saegis_lab.evaluation.coverage import Coverage, CoverageCounter
    from saegis_lab.training.texts import TokenTruth

EPILOG = f"""
[bold]Examples[/bold]

saegis eval coverage --model ./model --sae ./sae --texts texts.jsonl --features ban.json --plot coverage.png

saegis eval coverage --model ./model --sae ./sae --texts texts.jsonl --features 3815 --label poison --json
{offline.TEXTS_HELP}
Recall is the share of wanted tokens on which a feature fires, precision the share of its firings that are on
wanted tokens.
"""


def coverage(
    model: offline.Model,
    sae: offline.Sae,
    texts: offline.Texts,
    features: Annotated[
        str, typer.Option(metavar="FILE|INDEX,INDEX...", help="A ban file, or indices of features.")
    ],
    label: offline.LabelWanted = None,
    harmful: offline.HarmfulWanted = False,
    chosen_from: Annotated[
        str | None,
        typer.Option(
            metavar="CODE,CODE...",
            help="The languages that the features were chosen from. By default those of the ban file.",
        ),
    ] = None,
    site: offline.SiteName = None,
    raw: offline.Raw = False,
    dtype: Dtype = DtypeName.AUTO,
    device: Device = "cpu",
    out: eval_options.Out = None,
    plot: eval_options.Plot = None,
    json: options.Json = False,
) -> None:
    """Measure where features fire, language by language, one by one and as a set; no server is needed.

    Wanted are the texts of a label, or by default those that are harmful.
    """
    check_places(out, plot)
    with inputs():
        wanted_features, stated = _features(features)
    known = offline.read_texts(texts)
    wanted, words = offline.wanted_truth(known, label, harmful)
    with stage_display(json=False) as display:
        subject = offline.load_subject(model, sae, site, known, raw, dtype, device, display)
        counter = _counted(subject, wanted_features, wanted, display)
    with inputs():
        result = counter.result(words, codes(chosen_from) if chosen_from is not None else stated)
    from saegis_lab.evaluation.plots import plot_coverage

    tables = (_set_table, _recall_table, _precision_table)
    give(result, lambda: (each(result) for each in tables), (plot, partial(plot_coverage, result)), out, json)
    if not json:
        subject.tell_cut()


def _counted(
    subject: Subject,
    features: Sequence[int],
    wanted: Callable[[TokenTruth], bool],
    display: StageDisplay,
) -> CoverageCounter:
    """The features counted over all texts; ends the command where the SAE has no such feature."""
    from saegis_lab.evaluation.coverage import CoverageCounter, with_features

    try:
        narrow = with_features(subject.sae, features)
    except IndexError as error:
        display.close()
        raise fail(f"--features: {error}", "give the SAE that the features are of", USAGE) from error
    counter = CoverageCounter(features, wanted, subject.loaded.model.device)
    for batch in subject.batches(narrow, display):
        counter.add(batch.texts, subject.truths_of(batch), batch.activations)
    return counter


def _features(written: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The features, and the languages that they were found in as far as a ban file says so.

    Raises ValueError for what is neither a ban file nor indices.
    """
    indices = [each.strip() for each in written.split(",")]
    if all(each.isdecimal() for each in indices):
        features = tuple(map(int, indices))
        if len(set(features)) < len(features):
            raise ValueError(f"--features {written}: a feature stands there twice")
        return features, ()
    if not Path(written).is_file():
        raise ValueError(f"--features {written}: no such file, and not indices such as 17,99")
    from saegis_lab.evaluation.experiment import BanFile

    ban = BanFile.load(Path(written))
    return ban.features, ban.chosen_from


def _set_table(result: Coverage) -> Table:
    """A row for each language: what the features do together."""
    title = f"{len(result.features)} features together, on {result.wanted} texts"
    names = ("wanted texts", "covered", "wanted tokens", "covered", "other tokens, fired on")
    table = titled(title, ("language", *names))
    for code, each in result.languages.items():
        table.add_row(
            _language(code, result),
            str(each.wanted_texts),
            f"{each.texts:.0%}",
            str(each.wanted_tokens),
            f"{each.tokens:.1%}",
            "-" if each.other_tokens is None else f"{each.other_tokens:.1%}",
        )
    return table


def _recall_table(result: Coverage) -> Table:
    columns = ("feature", *(_language(code, result) for code in result.languages), "worst")
    table = titled("recall: share of wanted tokens on which a feature fires", columns, words=("worst",))
    for each in result.features:
        cells = [f"{each.recall[code]:.3f}" for code in result.languages]
        table.add_row(str(each.feature), *cells, each.worst)
    return table


def _precision_table(result: Coverage) -> Table:
    columns = ("feature", *(_language(code, result) for code in result.languages))
    title = "precision: share of a feature's firings that are on wanted tokens"
    table = titled(title, columns, words=())
    for each in result.features:
        shares = [each.precision[code] for code in result.languages]
        table.add_row(str(each.feature), *("-" if share is None else f"{share:.2f}" for share in shares))
    return table


def _language(code: str, result: Coverage) -> str:
    """A language, marked where the features were found in it."""
    return f"{code} (found)" if code in result.found_in else code
