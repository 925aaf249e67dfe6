"""Activations of a Transformers causal language model at a site, streamed for training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.torch.site_reading import read_site
from saegis_server.steering.site import Site


def token_batches(
    rows: Iterable[Sequence[int]], pad: int, batch_tokens: int, pool: int = 2048
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids int64, real bool), both [rows, length], from token ids; `real` is False on padding.

    Rows of like length stand together: `pool` rows are sorted at a time. The batches of a pool come in an
    order of chance, always the same one, so that lengths mix. Empty rows are left out.
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
    generator = torch.Generator().manual_seed(buffer.seed)
    held: list[Tensor] = []

    def shuffled() -> Iterator[Tensor]:
        x = torch.cat(held)
        held.clear()
        for _ in range(buffer.reuse):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for start in range(0, len(x) - buffer.batch + 1, buffer.batch):
                yield x[order[start : start + buffer.batch]]

    for x in activations_of(model, site, rows, buffer, excluded, skip):
        held.append(x)
        if sum(map(len, held)) >= buffer.tokens:
            yield from shuffled()
    if held:
        yield from shuffled()
