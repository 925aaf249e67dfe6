"""Draws: the next token of a text with a seed, by the sampler of the embedded engine.

So a seed gives the same text on both engines, alone and in company, however a prompt happens to be cut: the
number that is drawn for a token depends on the seed and on its place in the answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.torch.sampler import sample, sampling_table


@dataclass(frozen=True, slots=True)
class Draw:
    """By what the tokens of a text are chosen: its parameters, its own seed, and the tokens that end it."""

    sampling: SamplingParams
    seed: int
    stops: tuple[int, ...] = ()


@torch.inference_mode()
def drawn(logits: Tensor, draw: Draw, prompt: Sequence[int], answer: Sequence[int]) -> int:
    """The next token of a text, of logits [V] after a prompt and the tokens that were chosen so far."""
    sampling, vocabulary = draw.sampling, logits.shape[-1]
    table = sampling_table(1, vocabulary, logits.device)
    table.temperature[0], table.top_p[0] = sampling.temperature, sampling.top_p
    table.min_p[0], table.top_k[0] = sampling.min_p, sampling.top_k or vocabulary
    table.presence[0], table.frequency[0] = sampling.presence_penalty, sampling.frequency_penalty
    table.repetition[0], table.min_tokens[0] = sampling.repetition_penalty, sampling.min_tokens
    table.seed[0] = draw.seed - 2**64 if draw.seed >= 2**63 else draw.seed
    table.generated[0] = len(answer)
    table.in_prompt[0, list(prompt)] = True
    table.stops[0, list(draw.stops)] = True
    table.counts[0].index_add_(
        0, torch.tensor(answer, dtype=torch.int64), torch.ones(len(answer), dtype=table.counts.dtype)
    )
    for token, bias in sampling.logit_bias.items():
        table.bias[0, token] = bias
    return int(sample(logits[None].to(torch.float32), table)[0])
