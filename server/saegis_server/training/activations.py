"""Activations of a Transformers causal language model at a site: read, edited, and streamed for training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from saegis_server.engine.sites import Site, site_module

#: Replaces the activation x [rows, tokens, d] of a site, in its dtype.
Edit = Callable[[Tensor], Tensor]


@contextmanager
def edited(model: PreTrainedModel, site: Site, edit: Edit) -> Iterator[None]:
    """While open, the activation x [rows, tokens, d] of `site` is replaced by `edit(x)`.

    Raises SiteError if the model has no such site.
    """
    module, reads_input = site_module(model, site)
    handle: RemovableHandle
    if reads_input:

        def before(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


class _Done(Exception):
    """Raised to leave the forward pass once the site has been read."""


@torch.no_grad()
def read_site(
    model: PreTrainedModel, site: Site, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Activations at `site`, float32 [rows, tokens, d], on the model's device; later layers are not run.

    input_ids and attention_mask: int64 [rows, tokens]. Under causal attention right padding needs no mask.
    """
    caught: list[Tensor] = []

    def stop(x: Tensor) -> Tensor:
        caught.append(x.detach().float())
        raise _Done

    with edited(model, site, stop):
        try:
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        except _Done:
            return caught[0]
    raise RuntimeError(f"{site}: the model's forward pass does not run through it")


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
