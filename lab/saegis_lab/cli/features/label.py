"""The command `saegis features label`: find out from labelled texts what the features of an SAE stand for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, print_json, shares
from saegis_lab.cli import offline
from saegis_lab.cli.files import note_written
from saegis_lab.cli.tables import titled
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Collection

    from saegis_lab.cli.offline import Subject
    from saegis_server.sae.examples import Examples
    from saegis_server.sae.labels import FeatureLabel, Labels

EPILOG = f"""
[bold]Examples[/bold]

saegis features label --model ./model --sae ./sae --texts texts.jsonl

saegis features label --model owner/model --sae owner/sae/folder --texts texts.jsonl --out ./labels
{offline.PICTURES_HELP}
A feature gets the label, the label in a language, the language or the vocabulary entry that fits its firing
best. It is written to features.jsonl beside the SAE, where [bold]saegis serve[/bold] finds it, and the
pieces of text in which each feature is strongest to examples.safetensors. [bold]saegis features show[/bold]
shows both.
"""
_SHOWN = 20


@options.grouped
def label(
    *,
    source: offline.Source,
    site: offline.SiteName = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write both files; by default beside the SAE."),
    ] = None,
    raw: offline.Raw = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the labels that are there.")] = False,
    placement: offline.Placement,
    json: options.Json = False,
) -> None:
    """Label every feature of an SAE from labelled texts; no server is needed."""
    folder = label_folder(out, source.sae, force)
    texts = source.labelled_texts(pictured=True)
    with stage_display(json=False) as display:
        subject = offline.load_subject(source, site, texts, raw, placement, display)
        labels, examples = _found(subject, display)
    labels.save(folder)
    examples.save(folder)
    summary = _Summary.of(labels, {concept for truth in subject.truths for concept in truth.concepts})
    if json:
        print_json({"folder": str(folder), "summary": summary})
        return
    console().print(_table(labels, summary))
    subject.note_cut()
    note_written(folder / "features.jsonl")
    note_written(folder / "examples.safetensors")


def label_folder(out: Path | None, sae: str, force: bool) -> Path:
    """The folder to write into; ends the command if it is no folder or has labels already."""
    from saegis_server.sae.labels import LABELS_FILE

    folder = out or Path(sae).expanduser()
    if not folder.is_dir() and out is None:
        raise fail(f"--sae {sae} is no folder to write labels beside", "say where to with --out", USAGE)
    if folder.exists() and not folder.is_dir():
        raise fail(f"--out {folder} is a file", "name a folder", USAGE)
    if (folder / LABELS_FILE).exists() and not force:
        raise fail(
            f"{folder / LABELS_FILE} exists", "replace it with --force, or write elsewhere with --out", USAGE
        )
    return folder


def _found(subject: Subject, display: StageDisplay) -> tuple[Labels, Examples]:
    """The labels and the examples; the texts with examples are read twice."""
    from saegis_lab.training.examples import Histograms, StrongestTokens, gather_examples
    from saegis_lab.training.labels import make_labels
    from saegis_lab.training.statistics import FeatureStatistics, VocabularyCounts

    features, device = subject.sae.features, subject.loaded.model.device
    entries = 1 + max(subject.loaded.tokenizer.get_vocab().values())
    statistics = FeatureStatistics(features, device)
    vocabulary = VocabularyCounts(features, entries, device)
    histograms, strongest = Histograms(features, device), StrongestTokens(features, device)
    for batch in subject.batches(subject.sae, display):
        truths = subject.truths_of(batch)
        statistics.add(batch.activations, truths)
        vocabulary.add(batch.token_ids, batch.activations, [truth.language for truth in truths])
        histograms.add(batch.activations)
        strongest.add(batch)
    chosen = frozenset(strongest.texts.flatten().tolist())
    again = subject.batches(subject.sae, display, chosen)
    examples = gather_examples(strongest, histograms, again, subject.sae, statistics.total)
    display("choosing labels", 0, 0)
    return make_labels(statistics, vocabulary, subject.loaded.tokenizer), examples


@dataclass(frozen=True, slots=True)
class _Summary:
    """How many features have which labels; those labelled with a vocabulary entry count in `features`
    only."""

    features: int
    never_fire: int
    harmful: int
    by_concept: dict[str, int]

    @classmethod
    def of(cls, labels: Labels, concepts: Collection[str]) -> _Summary:
        from saegis_lab.training.labels import NEVER_FIRES

        return cls(
            features=len(labels),
            never_fire=sum(feature.label == NEVER_FIRES for feature in labels),
            harmful=sum(feature.harmful for feature in labels),
            by_concept=dict(
                Counter(feature.label for feature in labels if feature.label in concepts).most_common()
            ),
        )


def _table(labels: Labels, summary: _Summary) -> Table:
    """The most frequent concepts, each with the figures of its feature of the best recall in the worst
    language."""
    title = (
        f"{summary.features} features: {sum(summary.by_concept.values())} fit what is known of texts, "
        f"{summary.never_fire} never fire; {summary.harmful} are harmful"
    )
    columns = ("label", "features", "best", "its precision", "its recall")
    table = titled(title, columns, words=("label", "its recall"))
    for name, count in list(summary.by_concept.items())[:_SHOWN]:
        best = max((feature for feature in labels if feature.label == name), key=_least_recall)
        table.add_row(
            Text(name, style="red" if best.harmful else ""),
            str(count),
            str(best.feature),
            f"{best.precision:.2f}",
            shares(best.recall),
        )
    return table


def _least_recall(label: FeatureLabel) -> float:
    return min(label.recall.values(), default=0.0)
