"""The command `saegis features import`: take over what others found features to stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, print_json
from saegis_lab.cli.features.label import label_folder
from saegis_lab.cli.files import inputs, note_written

EPILOG = """
[bold]Examples[/bold]

saegis features import batch-0.jsonl.gz batch-1.jsonl.gz --sae ./sae

saegis features import batch-0.jsonl.gz --sae ./my-sae --out ./labels --explained-by gpt-4o-mini

[bold]Files[/bold]

Neuronpedia's exports of explanations, as they are: v1/MODEL/SAE/explanations/batch-0.jsonl.gz and so on. All
must be of one SAE, and it must be this one: a label says nothing of another's feature. What was measured of
the features themselves in features.jsonl beside the SAE stays; figures of replaced labels go.
"""


@options.grouped
def import_labels(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="The exports.")
    ],
    *,
    sae: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The SAE.")],
    explained_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take only explanations that this model wrote.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write features.jsonl; by default beside the SAE."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the labels that are there.")] = False,
    json: options.Json = False,
) -> None:
    """Label features by Neuronpedia's explanation files; no server is needed."""
    folder = label_folder(out, sae, force)
    with inputs():
        from saegis_lab.training.neuronpedia import read_explanations, relabelled
        from saegis_server.sae.errors import SAEFileError
        from saegis_server.sae.files import load_sae, resolve_sae
        from saegis_server.sae.labels import LABELS_FILE, Labels

        explanations = read_explanations(files, explained_by)
        try:
            place = resolve_sae(sae).folder
            features = load_sae(place).features
            labels = relabelled(Labels.load(place, features), explanations, features)
        except SAEFileError as error:
            raise fail(f"the SAE cannot be read: {error}") from error
    try:
        labels.save(folder)
    except OSError as error:
        raise fail(f"{folder / LABELS_FILE} cannot be written: {error.strerror}", code=USAGE) from error
    named = len(explanations.by_feature)
    if json:
        print_json({"source": explanations.source, "labelled": named, "features": features})
        return
    console().print(f"{named} of {features} features are labelled by {explanations.source}", markup=False)
    if explanations.left:
        console().print(f"{explanations.left} further explanations of them were left", markup=False)
    note_written(folder / LABELS_FILE)
