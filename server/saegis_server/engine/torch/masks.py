"""Masks: which places of the cache each new token sees, by the model's own predicate at its position.

A model's code makes its masks (causal, sliding, chunked, or what else it has) through Transformers, which
asks the function that is registered here. What the predicate needs of a step comes to it as a cache would
tell it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from saegis_server.engine.torch.context import StepContext


class SeenPlaces(Cache):
    """What a model's code is told of the cache that a step reads: its length, and the tokens' positions.

    Attention itself reads and writes the cache, so that what is put here comes back as it is.
    """

    def __init__(self, context: StepContext) -> None:
        """Of the step that `context` describes at the time."""
        super().__init__(layers=[])
        self.context = context

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values themselves."""
        return key_states, value_states

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """The positions of the new tokens, int64 [B, Q], which `visible` takes for those of the queries."""
        return self.context.positions

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many places are read, from which one on."""
        return self.context.length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None are known to have been read: the positions of new tokens are always given."""
        return 0


def visible(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Tensor | int = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor:
    """Which places each new token sees, bool [B, 1, Q, K]; `mask_function` is the model's predicate.

    q_offset: the queries' positions [B, Q] in a step, else the first one's. attention_mask: bool [B, K],
    which places hold tokens, if not all do.
    """
    if isinstance(q_offset, Tensor):
        queries = q_offset[:, None, :, None]
    else:
        queries = (torch.arange(q_length, device=device) + q_offset)[None, None, :, None]
    places = (torch.arange(kv_length, device=device) + kv_offset)[None, None, None]
    row = torch.arange(batch_size, device=device)[:, None, None, None]
    seen = mask_function(row, torch.zeros_like(row[:1]), queries, places)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :kv_length].to(torch.bool)
    return seen.expand(batch_size, -1, q_length, kv_length)
