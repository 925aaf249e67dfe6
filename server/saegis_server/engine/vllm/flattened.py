"""Flattened: the tokens of one step as vLLM runs them, those of several texts behind each other, and as a
grid of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.engine.vllm.orders import Order
from saegis_server.steering.evaluator import Where
from saegis_server.steering.tokens import Spread, Tokens


class Part(NamedTuple):
    """The tokens `start` to `start + length` of a text, which are read in a step; counted: how many of the
    text's first tokens were counted before."""

    request_id: str
    order: Order
    start: int
    length: int
    counted: int


class Flattened:
    """T tokens of B texts, of which the longest has Q here.

    tokens, at: all of them, each with its slot; by_text: the same with its text, counted from 0, in place of
    that. grid: int64 [B·Q], which token is where in the grid, and given: bool [B, Q], where there is one.
    last: int64 [B], the last token of each text.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        """The parts in the order in which vLLM runs them."""
        self.parts, self.batch = tuple(parts), len(parts)
        lengths = [part.length for part in parts]
        counts, self.count, self.longest = torch.tensor(lengths), sum(lengths), max(lengths)
        numbers = torch.tensor(
            [
                (
                    part.order.slot,
                    part.start,
                    part.order.answer,
                    part.order.unmoved,
                    part.order.unread,
                    part.order.left_out,
                    part.counted,
                )
                for part in parts
            ]
        )
        ends = counts.cumsum(0)
        begins, of_token = ends - counts, numbers
        if self.longest > 1:
            of_token = numbers.repeat_interleave(counts, 0)
        slot, position, answer, unmoved, unread, left_out, counted = of_token.unbind(1)
        if self.longest > 1:
            position = position + torch.arange(self.count) - begins.repeat_interleave(counts)
        self.slots, self.last = numbers[:, 0].to(device), (ends - 1).to(device)
        self.position, self.slot = position.to(device), slot.to(device)
        self.prompt = (position < answer).to(device)
        self.unmoved = (position < unmoved).to(device) if any(part.order.unmoved for part in parts) else None
        self.new, self.observed = (position >= counted).to(device), (position >= left_out).to(device)
        self.tokens, self.by_text = Tokens.of(self.slot, self.prompt), self._by_text(counts)
        ones = torch.ones_like(self.prompt)
        self.at = Where(self.position, answer.to(device), ones, unread.to(device))
        steps = torch.arange(self.longest)
        self.given = (steps < counts[:, None]).to(device)
        self.grid = (begins[:, None] + torch.minimum(steps, counts[:, None] - 1)).flatten().to(device)
        self._is_grid = self.count == self.batch * self.longest

    def on_grid(self, values: Tensor) -> Tensor:
        """What belongs to tokens [T, ..] as [B·Q, ..]; where the grid has no token, its text's last one's."""
        return values if self._is_grid else values.index_select(0, self.grid)

    def from_grid(self, values: Tensor) -> Tensor:
        """What belongs to the grid [B·Q, ..] as [T, ..]."""
        return values if self._is_grid else values[self.given.flatten()]

    def tokens_on_grid(self) -> Tokens:
        """The tokens of the grid, whose slots are the texts, counted from 0."""
        if self._is_grid:
            return self.by_text
        text = torch.arange(self.batch, device=self.slots.device).repeat_interleave(self.longest)
        return Tokens.of(text, self.on_grid(self.prompt))

    def _by_text(self, counts: Tensor) -> Tokens:
        """The tokens, whose slots are the texts, counted from 0."""
        if self.longest == 1:
            return Tokens(self.prompt, Spread.EACH)
        if self.batch == 1:
            return Tokens(self.prompt, Spread.ONE)
        text = torch.arange(self.batch).repeat_interleave(counts).to(self.slots.device)
        return Tokens.of(text, self.prompt)
