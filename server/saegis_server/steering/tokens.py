"""Tokens: those of one step, flattened, each of a slot, and how they meet the rows of their slots.

A step has T tokens of any slots. What belongs to slots, such as rows, has the slots first: [S, ..]; what
belongs to tokens has the tokens first: [T, ..]. How the tokens lie is fixed when the step is made, so that
each kind of step is one program with the products that suit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor


class Spread(Enum):
    """How tokens lie: one of each slot, in order (decode); all of a single slot (prefill); or anyhow."""

    EACH = auto()
    ONE = auto()
    ANY = auto()


@dataclass(frozen=True, slots=True)
class Tokens:
    """T tokens of S slots, those of a slot one after the other and next to each other.

    prompt: bool [T], which belong to a prompt. slot: int64 [T], whose they are; None where `spread` says it.
    """

    prompt: Tensor
    spread: Spread
    slot: Tensor | None = None

    @classmethod
    def of(cls, slot: Tensor, prompt: Tensor) -> Tokens:
        """Tokens of any slots."""
        return cls(prompt, Spread.ANY, slot)

    def own(self, values: Tensor) -> Tensor:
        """What each token's slot has: values [S, ..] → [T, ..], or [1, ..] where all are of one slot."""
        return values if self.slot is None else values.index_select(0, self.slot)

    def times(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """Each token's vector times its slot's matrix: [T, j] × [S, j, k] → [T, k]."""
        match self.spread:
            case Spread.EACH:
                return torch.matmul(vectors[:, None], matrices)[:, 0]
            case Spread.ONE:
                return torch.matmul(vectors, matrices[0])
        return self._dense(vectors, matrices)

    def _dense(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """One product with the matrices of all slots, of which each token keeps what is its own.

        On the side that is narrower: T·S·min(j, k) numbers are made on the way.
        """
        slots, j, k = matrices.shape
        mine = torch.nn.functional.one_hot(self._slot, slots).to(vectors.dtype)[:, :, None]
        if k <= j:
            every = torch.matmul(vectors, matrices.transpose(0, 1).reshape(j, slots * k))
            return every.view(-1, slots, k).gather(1, self._slot[:, None, None].expand(-1, 1, k))[:, 0]
        return torch.matmul((vectors[:, None] * mine).view(-1, slots * j), matrices.reshape(slots * j, k))

    @property
    def _slot(self) -> Tensor:
        if self.slot is None:
            raise ValueError("tokens that lie anyhow need the slot of each")
        return self.slot

    def so_far(self, truths: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens of this step ago each truth [T, n] held last in its slot, int64 [T, n], and whether
        it did at all, bool [T, n]; 0 is the token itself."""
        if self.spread is Spread.EACH:
            return torch.zeros_like(truths, dtype=torch.int64), truths
        place = torch.arange(len(truths), device=truths.device)[:, None]
        latest = torch.where(truths, place, -1).cummax(0).values
        return place - latest, latest >= self.first

    @property
    def first(self) -> Tensor:
        """Where the tokens of each token's slot begin in this step, int64 [T, 1]."""
        place = torch.arange(len(self.prompt), device=self.prompt.device)[:, None]
        match self.spread:
            case Spread.EACH:
                return place
            case Spread.ONE:
                return torch.zeros_like(place)
        begins = torch.ones_like(place, dtype=torch.bool)
        begins[1:, 0] = self._slot[1:] != self._slot[:-1]
        return torch.where(begins, place, -1).cummax(0).values

    @property
    def nth(self) -> Tensor:
        """Which token of its slot's in this step each is, int64 [T, 1], counted from 0."""
        return torch.arange(len(self.prompt), device=self.prompt.device)[:, None] - self.first
