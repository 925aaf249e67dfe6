"""What commands without a server work on: a model, an SAE that fits its site, and labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from saegis.cli.output import USAGE, fail, notes
from saegis_lab.cli.files import inputs
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.cli.stages import StageDisplay
from saegis_server.policy.errors import Unmatched

if TYPE_CHECKING:
    from saegis_lab.training.activations import FeatureBatch, Seen, TokenBatch
    from saegis_lab.training.texts import LabelledText, TokenTruth
    from saegis_server.engine.torch.loading import LoadedModel
    from saegis_server.rpc.server.sae_sources import PlacedSAE
    from saegis_server.sae.autoencoder import SparseAutoencoder
    from saegis_server.steering.site import Site

_Batch = TypeVar("_Batch", "FeatureBatch", "TokenBatch")

SiteName = Annotated[
    str | None,
    typer.Option("--site", metavar="SITE", help="Where the SAE belongs; by default where its file says."),
]
Raw = Annotated[bool, typer.Option(help="The texts carry their special tokens; the tokenizer adds none.")]

TEXTS_HELP = """
[bold]Texts[/bold]

A line of the texts: {"text": "Arsenic is a poison.", "label": "poison", "language": "en", "harmful": true}
"""
#: Of commands that read pictures too.
PICTURES_HELP = f"""{TEXTS_HELP}
One with a picture, for a model that sees: {{"image": "bottle.png", "label": "poison", "language": "en"}}
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A group of options: a model, its SAE and labelled texts."""

    model: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")]
    sae: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The SAE.")]
    texts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="JSONL, one text a line: text, label, language, harmful.",
        ),
    ]
    unmatched_saes: Annotated[
        Unmatched, typer.Option(help="As saegis serve: what files that name another model or place are.")
    ] = Unmatched.REFUSE

    def labelled_texts(self, pictured: bool = False) -> tuple[LabelledText, ...]:
        """The texts of the file; ends the command where it is wrong, and where a text has a picture and none
        may, unless `pictured`."""
        from saegis_lab.training.texts import read_labelled_texts

        with inputs():
            texts = read_labelled_texts(self.texts)
        image = next((text.image for text in texts if text.image is not None), None)
        if image is not None and not pictured:
            raise fail(f"{image}: this command reads texts alone", "leave lines with an image out", USAGE)
        return texts


@dataclass(frozen=True, slots=True)
class Placement:
    """A group of options: the dtype and the device that a model runs with."""

    dtype: Dtype = DtypeName.AUTO
    device: Device = "cpu"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A group of options: which texts the features are for."""

    label: Annotated[
        str | None, typer.Option("--label", metavar="LABEL", help="The features are for texts of this label.")
    ] = None
    harmful: Annotated[bool, typer.Option("--harmful", help="The features are for harmful texts.")] = False

    def test(self, texts: tuple[LabelledText, ...]) -> tuple[Callable[[TokenTruth], bool], str]:
        """Whether a token is wanted, as a function and in words; ends the command if no text is."""
        if self.label is not None and self.harmful:
            raise fail("--label and --harmful contradict each other", "give one of them", USAGE)
        if self.label is None:
            if not any(text.harmful for text in texts):
                raise fail("no text is harmful", 'mark some with "harmful": true, or give --label', USAGE)
            return lambda truth: truth.harmful, "harmful"
        known = sorted({text.label for text in texts})
        if self.label not in known:
            shown = ", ".join(map(repr, known[:20]))
            raise fail(f"no text has the label {self.label!r}", f"the texts have {shown}", USAGE)
        return lambda truth: truth.subject == self.label, self.label


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with an SAE that was checked at its site, and the tokens of texts, cut to the context.

    rows: the token ids of each text; cut: how many texts were longer than the context; truths: what is known
    of each text's tokens; excluded: the token ids that the SAE was trained without; seen: of the texts with
    a picture what the model's vision tower is given of it.
    """

    loaded: LoadedModel
    placed: PlacedSAE
    rows: list[list[int]]
    cut: int
    truths: tuple[TokenTruth, ...]
    excluded: frozenset[int]
    seen: Seen

    @property
    def sae(self) -> SparseAutoencoder:
        """The SAE."""
        return self.placed.loaded.sae

    @property
    def site(self) -> Site:
        """Where the SAE belongs."""
        return self.placed.loaded.site

    def batches(
        self, sae: SparseAutoencoder, display: StageDisplay, chosen: Collection[int] | None = None
    ) -> Iterator[FeatureBatch]:
        """The features of `sae` on the texts, or on those of the numbers `chosen`, shown as a stage; ends the
        command if no token is left in any text."""
        from saegis_lab.training.activations import feature_batches

        # A text without a token is not read, and the others keep their numbers.
        rows = [row if chosen is None or number in chosen else [] for number, row in enumerate(self.rows)]
        read = feature_batches(self.loaded.model, self.site, sae, rows, self.excluded, seen=self.seen)
        return self._shown(read, display, rows)

    def token_batches(self, display: StageDisplay) -> Iterator[TokenBatch]:
        """The activations of the texts' tokens, as `batches` gives features."""
        from saegis_lab.training.activations import token_batches_at

        read = token_batches_at(self.loaded.model, self.site, self.rows, self.excluded, seen=self.seen)
        return self._shown(read, display, self.rows)

    def _shown(
        self, read: Iterator[_Batch], display: StageDisplay, rows: Sequence[Sequence[int]]
    ) -> Iterator[_Batch]:
        total = sum(1 for row in rows for token in row[1:] if token not in self.excluded)
        if not total and rows == self.rows:
            display.close()
            raise fail(
                "the texts have no tokens to read: the first of a text and special ones do not count",
                "give longer texts",
            )
        done = 0
        display("reading the tokens", done, total)
        for batch in read:
            yield batch
            done += len(batch.token_ids)
            display("reading the tokens", done, total)

    def truths_of(self, batch: FeatureBatch) -> list[TokenTruth]:
        """What is known of each token of a batch."""
        return [self.truths[number] for number in batch.texts.tolist()]

    def note_cut(self) -> None:
        """Say on standard error if texts were cut to the context."""
        if self.cut:
            notes().print(
                f"{self.cut} of {len(self.rows)} texts are longer than the model's context; what lies beyond "
                f"{self.loaded.max_context} tokens was left out",
                style="yellow",
            )


def load_subject(
    source: Source,
    site: str | None,
    texts: tuple[LabelledText, ...],
    raw: bool,
    placement: Placement,
    display: StageDisplay,
) -> Subject:
    """Load the model and the SAE, check the SAE at its site, and encode the texts; ends the command on
    failure."""
    display("loading the libraries", 0, 0)
    from transformers.utils import logging as transformers_logging

    from saegis_lab.cli.pictured import PicturedTextError, encoded
    from saegis_server.cli.serve.start_errors import start_failed
    from saegis_server.sae.left_out import excluded_tokens, special_tokens

    # The stages are shown here; a second bar would tear the display.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded, placed = _load(source, site, placement, display)
        told = encoded(loaded, texts, raw)
    except PicturedTextError as error:
        display.close()
        raise fail(str(error), "see the command's --help", USAGE) from error
    except Exception as error:
        display.close()
        failure = start_failed(error)
        if failure is None:
            raise
        raise fail(*failure) from error
    left_out = excluded_tokens(placed.loaded.sae, special_tokens(loaded.tokenizer))
    # At the places of a picture its token stands for what the tower makes of it.
    placeholder = () if loaded.eyes is None else (loaded.eyes.placeholder_id,)
    return Subject(
        loaded,
        placed,
        rows=told.rows,
        cut=told.cut,
        truths=tuple(text.truth for text in texts),
        excluded=left_out.difference(placeholder),
        seen=told.seen,
    )


def _load(
    source: Source, site: str | None, placement: Placement, display: StageDisplay
) -> tuple[LoadedModel, PlacedSAE]:
    from saegis_server.engine.sites import norm_gain, widths_of
    from saegis_server.engine.torch.loading import load_model
    from saegis_server.rpc.server.config import SAESource
    from saegis_server.rpc.server.loading import fitted
    from saegis_server.rpc.server.sae_sources import read_sae, with_gain

    display("loading the model", 0, 0)
    loaded = load_model(source.model, placement.dtype, placement.device)
    display("checking the SAE", 0, 0)
    read = read_sae(SAESource(path=source.sae, site=site), widths_of(loaded.model))
    placed = with_gain(read, partial(norm_gain, loaded.model))
    fitted(placed, loaded, source.unmatched_saes)
    return loaded, placed
