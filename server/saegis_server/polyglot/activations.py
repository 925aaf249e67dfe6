"""Residual-stream activations of a Transformers causal LM: captured at one block's output, shuffled, in
batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Edit = Callable[[Tensor], Tensor]


def block(model: PreTrainedModel, layer: int) -> nn.Module:
    """Decoder block `layer` of a model that keeps its blocks in `model.layers`. Raises IndexError when
    there is none."""
    blocks = model.get_submodule("model.layers")
    if not isinstance(blocks, nn.ModuleList) or not 0 <= layer < len(blocks):
        raise IndexError(f"layer {layer}: the model has no such block")
    return blocks[layer]


def _replace(output: object, hidden: Tensor) -> object:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def edited(model: PreTrainedModel, layer: int, edit: Edit) -> Iterator[None]:
    """While open, the output x [rows, tokens, d] of block `layer` is replaced by `edit(x)`."""

    def hook(_module: nn.Module, _inputs: object, output: object) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)  # noqa: S101
        return _replace(output, edit(hidden))

    handle: RemovableHandle = block(model, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Done(Exception):
    """Raised to leave the forward pass once the site has been read."""


@torch.no_grad()
def residual(model: PreTrainedModel, layer: int, input_ids: Tensor) -> Tensor:
    """Output of block `layer`, float32 [rows, tokens, d]; later blocks are not run."""
    caught: list[Tensor] = []

    def stop(hidden: Tensor) -> Tensor:
        caught.append(hidden.detach().float())
        raise _Done

    with edited(model, layer, stop):
        try:
            model(input_ids=input_ids, use_cache=False)
        except _Done:
            return caught[0]
    raise RuntimeError(f"layer {layer}: its block was not run by the model's forward pass")


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    batch_tokens: int,
    context: int,
    pool: int = 2048,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input_ids, real) of [rows, length] from `texts` that carry their own special tokens; `real` is
    False on padding."""
    pad = tokenizer.pad_token_id
    waiting: list[list[int]] = []

    def drain() -> Iterator[tuple[Tensor, Tensor]]:
        waiting.sort(key=len)
        while waiting:
            length = len(waiting[-1])
            group = [waiting.pop() for _ in range(min(len(waiting), max(1, batch_tokens // length)))]
            ids = torch.tensor([row + [pad] * (length - len(row)) for row in group])
            real = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in group])
            yield ids, real

    for text in texts:
        waiting.append(tokenizer(text, add_special_tokens=False)["input_ids"][:context])
        if len(waiting) >= pool:
            yield from drain()
    yield from drain()


def activation_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    layer: int,
    batch: int = 2048,
    buffer: int = 131_072,
    reuse: int = 1,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Shuffled activations, float32 [batch, d], from a buffer of `buffer` tokens that is read `reuse` times.

    Beginning-of-sequence tokens are left out: they are one constant vector. Ends when `texts` ends.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []

    def shuffled() -> Iterator[Tensor]:
        rows = torch.cat(held)
        held.clear()
        for _ in range(reuse):
            order = torch.randperm(len(rows), generator=generator)
            for start in range(0, len(rows) - batch + 1, batch):
                yield rows[order[start : start + batch]]

    for ids, real in token_batches(tokenizer, texts, 4096, model.config.max_position_embeddings):
        held.append(residual(model, layer, ids)[real & (ids != tokenizer.bos_token_id)])
        if sum(map(len, held)) >= buffer:
            yield from shuffled()
    if held:
        yield from shuffled()
