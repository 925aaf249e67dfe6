"""A training run: texts to activations to an SAE, measured on held-out text, and written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from saegis.version import __version__
from saegis_lab.training.activations import Buffer, activation_batches, shuffled_batches
from saegis_lab.training.harvest import Harvest
from saegis_lab.training.held_out import Measured, choose_sample, held_out_activations, measure_held_out
from saegis_lab.training.settings import SAETraining
from saegis_lab.training.texts import Encoder, TextError, TextSplit
from saegis_lab.training.trainer import plain_settings, train_sae
from saegis_server.engine.sites import site_module, site_width
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.steering.site import Place, Site

#: Where a run's checkpoint lies under its output folder, until the SAE is written.
CHECKPOINT_FOLDER = "checkpoint"
_BUFFER_TOKENS = 131_072
#: How many numbers the buffer holds at most, of float32.
_BUFFER_NUMBERS = 1 << 28


@dataclass(frozen=True)
class Source:
    """Where activations come from: a model, a site in it, and the texts that it reads.

    reuse: how often each activation is trained on. harvest: where the activations of the training texts are
    kept; without it the model reads them while the SAE is trained.
    """

    loaded: LoadedModel
    site: Site
    split: TextSplit
    encoder: Encoder
    reuse: int = 1
    harvest: Harvest | None = None

    @property
    def excluded(self) -> frozenset[int]:
        """The tokens whose activations are left out: beginning of sequence, and padding."""
        tokenizer = self.loaded.tokenizer
        return frozenset(
            token for token in (tokenizer.bos_token_id, tokenizer.pad_token_id) if token is not None
        )

    @property
    def read(self) -> dict[str, str | int | bool]:
        """What decides which activations there are: the model, the site and the texts."""
        files = ", ".join(f"{path.name} of {path.stat().st_size} bytes" for path in self.split.files)
        return {
            "model": self.loaded.name,
            "weights": self.loaded.digest,
            "site": str(self.site),
            "context": self.encoder.context,
            "raw": self.encoder.raw,
            "text": files,
            "text seed": self.split.seed,
        }

    @property
    def origin(self) -> dict[str, str | int | bool]:
        """What identifies a checkpoint, beside the settings."""
        kept = {"harvested": self.harvest.tokens} if self.harvest is not None else {}
        return {**self.read, "reuse": self.reuse, **kept}

    def gather(self, harvest: Harvest, tokens: int, progress: Callable[[int], None]) -> int:
        """Add to `harvest` until it holds `tokens` activations of the training texts, or all of them; returns
        how many it holds. Raises as `Harvest.grow` and `read_documents` do."""
        return harvest.grow(
            self.loaded.model,
            self.site,
            (row for row in self.encoder.rows(self.split.training()) if len(row) > 1),
            self._kept,
            tokens,
            self.excluded,
            self.loaded.tokenizer.pad_token_id or 0,
            progress,
        )

    @property
    def _kept(self) -> dict[str, str | int | bool]:
        """What a harvest is made from: its texts are those that are not held out."""
        held_out = self.split.held_out_file
        return {**self.read, "held out": str(self.split.held_out) if held_out is None else held_out.name}

    def batches(self, settings: SAETraining, rows: Rows) -> Iterator[Tensor]:
        """Shuffled activations, float32 [settings.batch, d]; `rows` are read where there is no harvest.

        Raises HarvestError for a harvest of another model, site or texts, and for one without activations.
        """
        buffer = _buffer(self, settings)
        if self.harvest is None:
            return activation_batches(self.loaded.model, self.site, rows, buffer, self.excluded, skip=1)
        self.harvest.check(self._kept)
        device = self.loaded.model.device
        return shuffled_batches((x.to(device) for x in self.harvest.chunks(settings.seed)), buffer)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run: the place of the SAE, its figures on held-out text, and the cost.

    tokens: activations trained on. text_tokens: tokens that the model read for them. readings: how often the
    texts were begun. seconds: of training, the model's reading included.
    """

    path: Path
    measured: Measured
    tokens: int
    text_tokens: int
    readings: int
    seconds: float


class Rows:
    """The training rows of token ids, repeated without end; counts the tokens and the readings."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.tokens = self.readings = 0

    def __iter__(self) -> Iterator[list[int]]:
        """Raises TextError where nothing is left to train on."""
        any_row = True
        while any_row:
            any_row = False
            self.readings += 1
            for row in self._source.encoder.rows(self._source.split.training()):
                if len(row) > 1:
                    any_row = True
                    self.tokens += len(row)
                    yield row
        raise TextError(self._source.split.files[0], "no text is left to train on; give more --text")


def run(source: Source, settings: SAETraining, out: Path, console: Console | None = None) -> TrainingResult:
    """Train an SAE on what `source` gives, measure it, and write it into the folder `out`.

    A run that was broken off goes on from its checkpoint under `out`, which is deleted in the end. Held-out
    text is read and the site looked up first, so that their errors come before the training. Raises
    SiteError, TextError, HarvestError, CheckpointError, SAEMismatch, and ValueError as `train_sae` does and
    for texts that are too short.
    """
    site_module(source.loaded.model, source.site)
    held_out = held_out_activations(
        source.loaded,
        source.site,
        source.encoder.rows(source.split.held_out_documents()),
        source.excluded,
    )
    rows = Rows(source)
    stream = source.batches(settings, rows)
    started = time.monotonic()
    checkpoint = out / CHECKPOINT_FOLDER
    sae = train_sae(stream, settings, console=console, folder=checkpoint, origin=source.origin)
    seconds = time.monotonic() - started
    measured = measure_held_out(sae, held_out)
    sae = replace(
        sae,
        name=out.name,
        model_name=source.loaded.name,
        hook_name=source.site.transformer_lens,
        stated_fvu=measured.fvu,
        stated_l0=measured.l0,
        metadata=_metadata(source, settings, measured),
    )
    sample = choose_sample(source.loaded, source.site, sae, source.encoder, source.split.held_out_documents())
    save_sae(sae, out, sample)
    shutil.rmtree(checkpoint)
    return TrainingResult(out, measured, settings.tokens, rows.tokens, rows.readings, seconds)


def _buffer(source: Source, settings: SAETraining) -> Buffer:
    """A buffer no larger than the memory allows and the run needs."""
    width = site_width(source.loaded.model, source.site)
    needed = -(-settings.tokens // source.reuse)
    tokens = max(settings.batch, min(_BUFFER_TOKENS, _BUFFER_NUMBERS // width, needed))
    pad = source.loaded.tokenizer.pad_token_id or 0
    return Buffer(settings.batch, tokens, source.reuse, pad=pad, seed=settings.seed)


def _metadata(source: Source, settings: SAETraining, measured: Measured) -> dict[str, object]:
    """The fields of the file beside SAELens's own; `exclude_special_tokens` are ids."""
    first = next(source.encoder.rows(source.split.held_out_documents()))
    hf_hook_name = _module_name(source)
    return {
        **({"hf_hook_name": hf_hook_name} if hf_hook_name else {}),
        "prepend_bos": first[0] == source.loaded.tokenizer.bos_token_id,
        "context_size": source.encoder.context,
        "exclude_special_tokens": sorted(source.excluded),
        "dead": measured.dead,
        "measured_tokens": measured.tokens,
        "training_tokens": settings.tokens,
        "training": plain_settings(settings),
        "text_files": [path.name for path in source.split.files],
        "text_seed": source.split.seed,
        "reuse": source.reuse,
        "model_digest": source.loaded.digest,
        "saegis_version": __version__,
    }


def _module_name(source: Source) -> str | None:
    """The module whose output is the site; None for the input of the first layer, and for resid_mid."""
    site = source.site
    if site.place is Place.RESID_PRE:
        if site.layer == 0:
            return None
        site = Site(site.layer - 1, Place.RESID_POST)
    owner, reads_input = site_module(source.loaded.model, site)
    if reads_input:
        return None
    names = {module: name for name, module in source.loaded.model.named_modules()}
    return str(names[owner])
