"""The sampler: from logits to the next token, for every row with its own parameters, without sorting.

Everything is elementwise or a reduction over the vocabulary, so that it compiles into the step. Filters
are thresholds on the logits, found by bisecting the bit patterns of floats, which is exact.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Rounds of four bits that find a float32 exactly.
_ROUNDS = 8
_LOWEST = -(2**31)
_TINY = torch.finfo(torch.float32).tiny


class SamplingTable(NamedTuple):
    """The sampling state of every slot, S slots, V tokens.

    Float32 [S]: temperature, top_p, min_p, presence, frequency, repetition; int64 [S]: top_k (V if there is
    no limit), seed, min_tokens, generated; [S, V]: bias float32, counts int32 of generated tokens, in_prompt
    bool, stops bool (the tokens that end the text, held back until min_tokens).
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    top_k: Tensor
    seed: Tensor
    min_tokens: Tensor
    generated: Tensor
    bias: Tensor
    counts: Tensor
    in_prompt: Tensor
    stops: Tensor


def sampling_table(slots: int, vocabulary: int, device: torch.device | str = "cpu") -> SamplingTable:
    """A table of greedy slots."""

    def floats(value: float) -> Tensor:
        return torch.full((slots,), value, dtype=torch.float32, device=device)

    def integers(value: int) -> Tensor:
        return torch.full((slots,), value, dtype=torch.int64, device=device)

    def grid(dtype: torch.dtype) -> Tensor:
        return torch.zeros(slots, vocabulary, dtype=dtype, device=device)

    return SamplingTable(
        *(floats(0.0), floats(1.0), floats(0.0), floats(0.0), floats(0.0), floats(1.0)),
        *(integers(vocabulary), integers(0), integers(0), integers(0)),
        *(grid(torch.float32), grid(torch.int32), grid(torch.bool), grid(torch.bool)),
    )


def penalised(logits: Tensor, table: SamplingTable) -> Tensor:
    """Logits [B, V] after bias, penalties (OpenAI's and CTRL's) and the stops held back by min_tokens."""
    logits = logits + table.bias
    counts = table.counts.to(torch.float32)
    seen = (table.counts > 0) | table.in_prompt
    repetition = table.repetition[:, None]
    repeated = torch.where(logits > 0.0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    logits = logits - table.frequency[:, None] * counts
    logits = logits - table.presence[:, None] * (counts > 0.0)
    held_back = table.stops & (table.generated < table.min_tokens)[:, None]
    return torch.where(held_back, -torch.inf, logits)


def _ordered(values: Tensor) -> Tensor:
    """int32 in the same order as the floats (IEEE 754 bit patterns, negatives mirrored)."""
    bits = values.view(torch.int32)
    return torch.where(bits >= 0, bits, _LOWEST - bits)


def _largest_threshold(keys: Tensor, weights: Tensor, enough: Tensor) -> Tensor:
    """The largest key t for which the weights of all keys ≥ t sum to at least `enough`; int32 [B, 1].

    A search over the bits of the keys, four a round: fifteen thresholds are tried in one pass.
    """
    low = torch.full_like(enough, _LOWEST, dtype=torch.int32)
    width = torch.full_like(low, 1 << 28)
    # Not an arange, which is one-dimensional: the compiler would compare its size with the batch's.
    tries = torch.ones(1, 15, device=keys.device, dtype=torch.int32).cumsum(-1, dtype=torch.int32)
    for _ in range(_ROUNDS):
        thresholds = low + tries * width
        above = keys[:, None, :] >= thresholds[:, :, None]
        sums = torch.where(above, weights[:, None, :], 0.0).sum(-1)
        low = low + (sums >= enough).sum(-1, keepdim=True, dtype=torch.int32) * width
        width = width >> 4
    return low


def _any(limited: Tensor) -> bool:
    """Whether a row is limited so, bool [B]; to a compiled step, which may not look, any may be."""
    return torch.compiler.is_compiling() or bool(limited.any())


def filtered(logits: Tensor, table: SamplingTable) -> Tensor:
    """Unnormalised probabilities [B, V] after temperature, top-k, top-p and min-p, in this order.

    Tokens that tie at a threshold are all kept. A threshold is searched for only where a row may have one: in
    an eager step with a vocabulary of 262,144 the searches take longer than the model.
    """
    temperature = table.temperature[:, None].clamp(min=1e-6)
    scaled = logits / temperature
    top = scaled.amax(-1, keepdim=True)
    keys = _ordered(scaled)
    weights = torch.exp(scaled - top)
    if _any(table.top_k < logits.shape[-1]):
        wanted = table.top_k[:, None].to(torch.float32)
        by_rank = _largest_threshold(keys, torch.ones_like(scaled), wanted)
        weights = torch.where(keys >= by_rank, weights, 0.0)
    if _any(table.top_p < 1.0):
        weights = torch.where(keys >= _by_mass(keys, weights, table), weights, 0.0)
    return torch.where(weights >= table.min_p[:, None], weights, 0.0)


def _by_mass(keys: Tensor, weights: Tensor, table: SamplingTable) -> Tensor:
    """The threshold of top-p, int32 [B, 1]; the lowest for rows that have none."""
    # However little of it is asked for, the likeliest token is, whose weight is 1.
    mass = (table.top_p[:, None] * weights.sum(-1, keepdim=True)).clamp(min=_TINY)
    # With top_p 1 nothing may be lost to the rounding of the sum.
    by_mass = _largest_threshold(keys, weights, torch.where(table.top_p[:, None] < 1.0, mass, 0.0))
    return torch.where(table.top_p[:, None] < 1.0, by_mass, _LOWEST)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """One uniform number in [0, 1) for each (seed, position), int64 [B] both: SplitMix64's finaliser."""

    def shift(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    def signed(value: int) -> int:
        return value - 2**64 if value >= 2**63 else value

    state = seed + (position + 1) * signed(0x9E3779B97F4A7C15)
    for _ in range(2):  # twice: consecutive seeds at consecutive positions must not meet
        state = (state ^ shift(state, 30)) * signed(0xBF58476D1CE4E5B9)
        state = (state ^ shift(state, 27)) * signed(0x94D049BB133111EB)
        state = state ^ shift(state, 31)
        state = state + seed * signed(0xD1342543DE82EF95)
    return (shift(state, 41).to(torch.float32)) * 2.0**-23


def draw(weights: Tensor, number: Tensor) -> Tensor:
    """The token [B] at which the cumulated weights [B, V] pass `number` [B], in [0, 1)."""
    cumulated = weights.cumsum(-1)
    passed = cumulated <= (number[:, None] * cumulated[:, -1:])
    return passed.sum(-1).clamp(max=weights.shape[-1] - 1)


def sample(logits: Tensor, table: SamplingTable) -> Tensor:
    """The next token [B] of each row of float32 logits [B, V]: the likeliest at temperature 0, else drawn."""
    adjusted = penalised(logits, table)
    drawn = draw(filtered(adjusted, table), uniform(table.seed, table.generated))
    return torch.where(table.temperature == 0.0, adjusted.argmax(-1), drawn)
