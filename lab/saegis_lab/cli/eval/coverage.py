"""The command `saegis eval coverage`: how well features found in some languages fire in the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, print_json
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.eval.files import check_places, codes, inputs, tell_written, write_result
from saegis_lab.cli.features import offline
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saegis_lab.cli.features.offline import Subject
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
    if out is not None:
        write_result(out, result)
    if plot is not None:
        from saegis_lab.evaluation.plots import plot_coverage

        plot_coverage(result, plot)
        tell_written(plot)
    if json:
        print_json(result)
        return
    for table in (_set_table(result), _recall_table(result), _precision_table(result)):
        console().print(table)
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
    table = Table(
        title=Text(f"{len(result.features)} features together, on {result.wanted} texts"),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("language")
    for name in ("wanted texts", "covered", "wanted tokens", "covered", "other tokens, fired on"):
        table.add_column(name, justify="right")
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
    table = _languages_table("recall: share of wanted tokens on which a feature fires", result)
    table.add_column("worst")
    for each in result.features:
        cells = [f"{each.recall[code]:.3f}" for code in result.languages]
        table.add_row(str(each.feature), *cells, each.worst)
    return table


def _precision_table(result: Coverage) -> Table:
    table = _languages_table("precision: share of a feature's firings that are on wanted tokens", result)
    for each in result.features:
        shares = [each.precision[code] for code in result.languages]
        table.add_row(str(each.feature), *("-" if share is None else f"{share:.2f}" for share in shares))
    return table


def _languages_table(title: str, result: Coverage) -> Table:
    """An empty table of features down and languages across."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("feature", justify="right")
    for code in result.languages:
        table.add_column(_language(code, result), justify="right")
    return table


def _language(code: str, result: Coverage) -> str:
    """A language, marked where the features were found in it."""
    return f"{code} (found)" if code in result.found_in else code
