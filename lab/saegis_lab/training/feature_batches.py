"""Feature batches: the activations of an SAE's features on texts, with the text and place of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.torch.site_reading import read_site
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site

#: Activations of features that are held at once.
_MOST_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Some tokens. texts, places and token_ids: int64 [n], the number of each token's text, where it stands
    in that text, and what it is; activations: float32 [n, m], in feature units. All on the model's device.
    """

    texts: Tensor
    places: Tensor
    token_ids: Tensor
    activations: Tensor


@torch.no_grad()
def feature_batches(
    model: PreTrainedModel,
    site: Site,
    sae: SparseAutoencoder,
    rows: Sequence[Sequence[int]],
    excluded: frozenset[int] = frozenset(),
    batch_tokens: int = 4096,
) -> Iterator[FeatureBatch]:
    """Every token of `rows` once, without the first of each row, whose norm is a model's outlier, and without
    the token ids `excluded`.

    rows: token ids of each text, special tokens included. They run through the model `batch_tokens` tokens at
    a time, padding included, longest rows first. Raises SiteError if the model has no such site, and
    ValueError if its activations are not as wide as the SAE reads them.
    """
    sae = on_device(sae, model.device)
    left_out = torch.tensor(sorted(excluded), dtype=torch.int64)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while order and len(rows[order[0]]) > 1:
        length = len(rows[order[0]])
        count = max(1, batch_tokens // length)
        group, order = order[:count], order[count:]
        ids = torch.zeros(len(group), length, dtype=torch.int64)
        for place, number in enumerate(group):
            ids[place, : len(rows[number])] = torch.tensor(rows[number])
        sizes = torch.tensor([len(rows[number]) for number in group])
        kept = (torch.arange(length) < sizes[:, None]) & ~torch.isin(ids, left_out)
        kept[:, 0] = False
        x = read_site(model, site, ids.to(model.device))
        lines, places = kept.nonzero(as_tuple=True)
        texts = torch.tensor(group)[lines]
        for part in torch.split(torch.arange(len(lines)), max(1, _MOST_NUMBERS // sae.features)):
            at = lines[part].to(x.device), places[part].to(x.device)
            yield FeatureBatch(
                texts[part].to(x.device),
                at[1],
                ids[lines[part], places[part]].to(x.device),
                sae.encode(x[at]),
            )


def on_device(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """The SAE with its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in sae.tensors().items()}
    return replace(sae, **tensors)  # type: ignore[arg-type]
