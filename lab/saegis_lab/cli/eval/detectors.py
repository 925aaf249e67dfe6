"""The command `saegis eval detectors`: features as a detector of harmful texts, beside a linear probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, fail
from saegis_lab.cli import offline
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, features_of, inputs
from saegis_lab.cli.tables import number, titled
from saegis_server.cli.policy.world import read_bundle
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saegis_lab.cli.offline import Subject
    from saegis_lab.evaluation.detectors import DetectorReadings, DetectorRow, Detectors
    from saegis_lab.training.texts import LabelledText
    from saegis_server.policy.bundle.bundle import Bundle

EPILOG = f"""
[bold]Examples[/bold]

saegis eval detectors --model ./model --sae ./sae --texts texts.jsonl --policy ./my-policy --chosen-from en,zh
--scorer words.json

saegis eval detectors --model ./model --sae ./sae --texts texts.jsonl --features ban.json --json
{offline.TEXTS_HELP}
The features' score of a text is the greatest, over its tokens without the first, of the sum of their
activations, each over its largest on wanted texts in the choosing languages. The probe is logistic regression
on the activations at the same site, fitted on the same languages; whether it reads their mean or their
largest, and how strongly its weights are held back, is what does best on held-out halves there.
"""


@options.grouped
def detectors(
    *,
    source: offline.Source,
    features: Annotated[
        str | None, typer.Option(metavar="FILE|INDEX,INDEX...", help="A ban file, or indices of features.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR_OR_TAR", exists=True, help="A bundle: the features of its redirects and bans."
        ),
    ] = None,
    wanted: offline.Wanted,
    chosen_from: eval_options.ChosenFrom = None,
    scorer: Annotated[
        str | None,
        eval_options.in_files(
            metavar="FILE|MODULE:FUNCTION", help="Word lists; texts with one of 'refusal' are left out."
        ),
    ] = None,
    site: offline.SiteName = None,
    raw: offline.Raw = False,
    placement: offline.Placement,
    output: eval_options.JsonOutput,
) -> None:
    """Hold features as a detector of harmful texts against a linear probe, in each language; no server.

    Wanted are the texts of a label, or by default those that are harmful.
    """
    output.check()
    if (features is None) == (policy is None):
        raise fail("give either --features or --policy", "see the command's --help", USAGE)
    with inputs():
        indices, stated = ((), ()) if features is None else features_of(features)
    bundle = None if policy is None else read_bundle(policy)
    texts = _without_refusals(source.labelled_texts(), scorer)
    is_wanted, words = wanted.test(texts)
    with stage_display(json=False) as display:
        subject = offline.load_subject(source, site, texts, raw, placement, display)
        readings = _read(subject, indices, bundle, display)
    from saegis_lab.evaluation.detectors import compare_detectors

    with inputs():
        chose = codes(chosen_from) if chosen_from is not None else stated
        result = compare_detectors(readings, subject.truths, is_wanted, words, chose, str(subject.site))
    output.write(result, lambda: (_table(result), _summary(result)))
    if not output.json:
        subject.note_cut()


def _without_refusals(texts: tuple[LabelledText, ...], scorer: str | None) -> tuple[LabelledText, ...]:
    """The texts that hold no refusal: in those a harmful subject is named and no harm done."""
    if scorer is None:
        return texts
    from saegis_lab.evaluation.scorers import holds_refusal

    with inputs():
        refuses = holds_refusal(scorer)
    kept = tuple(text for text in texts if not refuses(text.text))
    if not kept:
        raise fail("--scorer: every text holds a refusal", code=USAGE)
    return kept


def _read(
    subject: Subject, indices: Sequence[int], bundle: Bundle | None, display: StageDisplay
) -> DetectorReadings:
    """What detectors read of the texts; ends the command where the SAE has no such features."""
    from saegis_lab.evaluation.bundle_features import filtered_features
    from saegis_lab.evaluation.coverage import with_features
    from saegis_lab.evaluation.detectors import DetectorReadings
    from saegis_lab.training.activations import on_device

    try:
        found = indices if bundle is None else filtered_features(bundle, subject.placed.loaded)
        narrow = with_features(subject.sae, found)
    except (IndexError, ValueError) as error:
        display.close()
        option = "--features" if bundle is None else "--policy"
        raise fail(f"{option}: {error}", "give the SAE that the features are of", USAGE) from error
    readings = DetectorReadings(on_device(narrow, subject.loaded.model.device), found, len(subject.rows))
    for batch in subject.token_batches(display):
        readings.add(batch)
    return readings


def _table(result: Detectors) -> Table:
    """A row for each language."""
    title = f"area under the curve: {len(result.features)} features, a linear probe"
    table = titled(title, ("language", result.wanted, "others", "features", "probe"))
    table.caption = "1 tells all texts apart, 0.5 none; the probe's in chosen languages: held-out halves"
    for row in result.rows:
        name = f"{row.language} (chosen)" if row.chose else row.language
        cells = (number(row.features, ".4f"), number(row.probe, ".4f"))
        table.add_row(name, str(row.wanted), str(row.others), *cells)
    return table


def _summary(result: Detectors) -> Text:
    """Mean and worst of the languages that took no part, and how the probe came about."""
    text = Text()
    others = [row for row in result.rows if not row.chose and row.features is not None]
    if others:
        parts = (_mean_and_worst(others, name) for name in ("features", "probe"))
        text.append(f"languages that took no part: {'; '.join(parts)}\n", style="bold")
    probe = result.probe
    text.append(
        f"the probe reads the {probe.pooling} over a text's tokens, with penalty {probe.penalty:g}; "
        f"{probe.held_out:.4f} on held-out halves",
        style="dim",
    )
    if result.left_out:
        text.append(f"\n{result.left_out} texts have no token that counts", style="dim")
    return text


def _mean_and_worst(rows: Sequence[DetectorRow], name: str) -> str:
    areas = {row.language: area for row in rows if (area := getattr(row, name)) is not None}
    worst = min(areas, key=lambda code: areas[code])
    return f"{name} {sum(areas.values()) / len(areas):.4f}, worst {areas[worst]:.4f} ({worst})"
