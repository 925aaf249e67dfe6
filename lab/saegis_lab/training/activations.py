"""Activations of a language model at a site, and of an SAE's features there, streamed from texts."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.torch.site_reading import read_site
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site


def token_batches(
    rows: Iterable[Sequence[int]], pad: int, batch_tokens: int, pool: int = 2048
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids int64, real bool), both [rows, length], from token ids; `real` is False on padding.

    Rows of like length stand together: `pool` rows are sorted at a time. The batches of a pool are shuffled,
    always in the same order, so that lengths mix. Empty rows are left out.
    """
    waiting: list[Sequence[int]] = []
    chance = random.Random(0)

    def drain() -> Iterator[tuple[Tensor, Tensor]]:
        waiting.sort(key=len)
        groups: list[list[Sequence[int]]] = []
        while waiting:
            count = max(1, batch_tokens // len(waiting[-1]))
            groups.append(waiting[-count:])
            del waiting[-count:]
        chance.shuffle(groups)
        for group in groups:
            length = max(map(len, group))
            ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in group])
            sizes = torch.tensor([len(row) for row in group])
            yield ids, torch.arange(length)[None] < sizes[:, None]

    for row in rows:
        if row:
            waiting.append(row)
        if len(waiting) >= pool:
            yield from drain()
    yield from drain()


@dataclass(frozen=True)
class Buffer:
    """How activations are shuffled: a buffer of `tokens` tokens is read `reuse` times in batches of `batch`.

    Texts run through the model `batch_tokens` tokens at a time, padding included. `pad` is any token id.
    """

    batch: int = 2048
    tokens: int = 131_072
    reuse: int = 1
    batch_tokens: int = 4096
    pad: int = 0
    seed: int = 0


def activations_of(
    model: PreTrainedModel,
    site: Site,
    rows: Iterable[Sequence[int]],
    buffer: Buffer,
    excluded: frozenset[int] = frozenset(),
    skip: int = 0,
) -> Iterator[Tensor]:
    """Activations at `site`, float32 [tokens, d], on the model's device: one tensor for each forward pass.

    rows: token ids of each text, special tokens included. excluded: tokens whose activations are left out;
    skip: how many tokens are left out at the start of each text, whatever they are. The first is best left
    out: in most models its activation is one nearly constant vector of great norm.
    """
    left_out = torch.tensor(sorted(excluded), dtype=torch.long)
    for ids, real in token_batches(rows, buffer.pad, buffer.batch_tokens):
        kept = real & ~torch.isin(ids, left_out)
        kept[:, :skip] = False
        x = read_site(model, site, ids.to(model.device))
        yield x[kept.to(x.device)]


def activation_batches(
    model: PreTrainedModel,
    site: Site,
    rows: Iterable[Sequence[int]],
    buffer: Buffer,
    excluded: frozenset[int] = frozenset(),
    skip: int = 0,
) -> Iterator[Tensor]:
    """Shuffled activations at `site`, float32 [buffer.batch, d], on the model's device, until `rows` ends.

    rows, excluded and skip: as for `activations_of`.
    """
    return shuffled_batches(activations_of(model, site, rows, buffer, excluded, skip), buffer)


def shuffled_batches(chunks: Iterable[Tensor], buffer: Buffer) -> Iterator[Tensor]:
    """Activations [tokens, d], in chunks of any size, shuffled: float32 [buffer.batch, d], until `chunks`
    ends."""
    generator = torch.Generator().manual_seed(buffer.seed)
    held: list[Tensor] = []

    def shuffled() -> Iterator[Tensor]:
        x = torch.cat(held)
        held.clear()
        for _ in range(buffer.reuse):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for start in range(0, len(x) - buffer.batch + 1, buffer.batch):
                yield x[order[start : start + buffer.batch]]

    for x in chunks:
        held.append(x)
        if sum(map(len, held)) >= buffer.tokens:
            yield from shuffled()
    if held:
        yield from shuffled()


#: Of rows with pictures, by their numbers, what the model's vision tower is given of them.
Seen = Mapping[int, Mapping[str, Tensor]]
NOTHING_SEEN: Seen = MappingProxyType({})
#: The most activations of features that are held at once.
_MOST_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some tokens. texts, places and token_ids: int64 [n], the number of each token's text, where it stands
    in that text, and what it is; x: float32 [n, d], the activations at a site. All on the model's device.
    """

    texts: Tensor
    places: Tensor
    token_ids: Tensor
    x: Tensor


@torch.no_grad()
def token_batches_at(
    model: PreTrainedModel,
    site: Site,
    rows: Sequence[Sequence[int]],
    excluded: frozenset[int] = frozenset(),
    batch_tokens: int = 4096,
    seen: Seen = NOTHING_SEEN,
) -> Iterator[TokenBatch]:
    """Every token of `rows` once, without the first of each row, whose norm is a model's outlier, and without
    the token ids `excluded`.

    rows: token ids of each text, special tokens included. They run through the model `batch_tokens` tokens at
    a time, padding included, longest rows first; those with pictures, which are in `seen`, run alone. Raises
    SiteError if the model has no such site.
    """
    left_out = torch.tensor(sorted(excluded), dtype=torch.int64)
    for group in _groups(rows, batch_tokens, seen):
        length = len(rows[group[0]])
        ids = torch.zeros(len(group), length, dtype=torch.int64)
        for place, number in enumerate(group):
            ids[place, : len(rows[number])] = torch.tensor(rows[number])
        sizes = torch.tensor([len(rows[number]) for number in group])
        kept = (torch.arange(length) < sizes[:, None]) & ~torch.isin(ids, left_out)
        kept[:, 0] = False
        x = read_site(model, site, ids.to(model.device), seen=seen.get(group[0], {}))
        lines, places = kept.nonzero(as_tuple=True)
        yield TokenBatch(
            torch.tensor(group)[lines].to(x.device),
            places.to(x.device),
            ids[lines, places].to(x.device),
            x[lines.to(x.device), places.to(x.device)],
        )


def _groups(rows: Sequence[Sequence[int]], batch_tokens: int, alone: Collection[int]) -> Iterator[list[int]]:
    """The numbers of the rows with more than a token, in groups that run through the model together, the
    longest first."""
    order = sorted(
        (number for number, row in enumerate(rows) if len(row) > 1), key=lambda number: -len(rows[number])
    )
    while order:
        count = max(1, batch_tokens // len(rows[order[0]]))
        group = list(takewhile(lambda number: number not in alone, order[:count])) or order[:1]
        order = order[len(group) :]
        yield group


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Some tokens. texts, places and token_ids: int64 [n], as of TokenBatch; activations: float32 [n, m], in
    feature units. All on the model's device.
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
    seen: Seen = NOTHING_SEEN,
) -> Iterator[FeatureBatch]:
    """The features of the tokens of `token_batches_at`, of which the arguments are.

    Raises as that does, and ValueError if the activations are not as wide as the SAE reads them.
    """
    sae = on_device(sae, model.device)
    most = max(1, _MOST_NUMBERS // sae.features)
    for batch in token_batches_at(model, site, rows, excluded, batch_tokens, seen):
        for start in range(0, len(batch.texts), most):
            part = slice(start, start + most)
            yield FeatureBatch(
                batch.texts[part], batch.places[part], batch.token_ids[part], sae.encode(batch.x[part])
            )


def on_device(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """The SAE with its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in sae.tensors().items()}
    return replace(sae, **tensors)  # type: ignore[arg-type]
