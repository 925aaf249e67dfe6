"""Held-out text: how well a trained SAE does on it, and which part of it the server checks the SAE on."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.training.activations import Buffer, activations_of
from saegis_lab.training.texts import Encoder
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.checks import check_reconstruction, measure
from saegis_server.steering.site import Site

#: The most tokens that an SAE is measured on.
MEASURED_TOKENS = 65_536
#: The most tokens of the sample: the server reads the first 512 of it.
SAMPLE_TOKENS = 384
#: The sample is chosen among this many of the longest texts.
_CANDIDATES = 8
_CHUNK = 1024


@dataclass(frozen=True)
class Measured:
    """How an SAE does on held-out text of some `tokens`.

    fvu and l0: as `sae.checks.measure` defines them. dead: the share of features that fire nowhere there.
    """

    fvu: float
    l0: float
    dead: float
    tokens: int


def held_out_activations(
    loaded: LoadedModel, site: Site, rows: Iterable[Sequence[int]], excluded: frozenset[int]
) -> Tensor:
    """Activations of held-out rows of token ids, float32 [tokens, d], on the CPU.

    Raises ValueError if there are fewer than two tokens.
    """
    few = _limited(rows, MEASURED_TOKENS)
    chunks = [x.cpu() for x in activations_of(loaded.model, site, few, Buffer(), excluded, skip=1)]
    if sum(map(len, chunks)) < 2:
        raise ValueError(
            "the held-out texts have fewer than two tokens; give more --text, or --held-out FILE"
        )
    return torch.cat(chunks)


def _limited(rows: Iterable[Sequence[int]], tokens: int) -> Iterator[Sequence[int]]:
    for row in rows:
        if tokens <= 0:
            return
        yield row
        tokens -= len(row)


def measure_held_out(sae: SparseAutoencoder, activations: Tensor) -> Measured:
    """Measure `sae` on activations [tokens, d]. Raises ValueError as `sae.checks.measure` does."""
    fit = measure(sae, activations)
    fired = torch.zeros(sae.features, dtype=torch.bool)
    for chunk in torch.split(activations, _CHUNK):
        fired |= (sae.encode(chunk) > 0.0).any(0)
    return Measured(fit.fvu, fit.l0, 1.0 - float(fired.double().mean()), len(activations))


def choose_sample(
    loaded: LoadedModel, site: Site, sae: SparseAutoencoder, encoder: Encoder, texts: Iterable[str]
) -> str:
    """The beginning of a held-out text on which the server can check `sae`: one with a typical FVU.

    Of the longest texts it is the one whose FVU, measured as the server will, is nearest to the stated one.
    Raises ValueError if no text is long enough, and SAEMismatch if the server would refuse the SAE on it.
    """
    best: tuple[float, str, Tensor] | None = None
    for text in heapq.nlargest(_CANDIDATES, texts, key=len):
        sample = encoder.sample(text, SAMPLE_TOKENS)
        ids = loaded.tokenizer.encode(sample, verbose=False)[: encoder.context]
        if len(ids) < 3:
            continue
        x = read_site(loaded.model, site, torch.tensor([ids], device=loaded.model.device))[0, 1:].cpu()
        distance = abs(measure(sae, x).fvu - (sae.stated_fvu or 0.0))
        if best is None or distance < best[0]:
            best = (distance, sample, x)
    if best is None:
        raise ValueError("no held-out text has three tokens; give longer texts")
    check_reconstruction(sae, best[2], str(site))
    return best[1]
