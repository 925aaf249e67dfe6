"""Activity: at how many tokens of each slot's text rows acted, counted on the device within the step.

Rows are counted by groups, such as all that one rule has: a token at which several rows of a group act counts
once, at whatever sites they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from saegis_server.engine.counts import RowGroup, RowName
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from saegis_server.steering.tokens import Tokens

#: The most groups of a request.
MOST_GROUPS = 256


class SlotActivity:
    """Which rows of every slot are counted together, and what was counted.

    members: for each site and stage, float32 [S, rows, G], 1 where a row is of a group; counts: float32
    [S, G, 2], tokens of the prompt and of the answer. One more of each than there may be: to the compiler a
    slice that takes a whole tensor would be another program.
    """

    def __init__(
        self, sites: tuple[Site, ...], slots: int, capacity: Capacity, device: torch.device | str
    ) -> None:
        """Room for `slots` slots at each site."""
        self.sites = sites
        room = (capacity.edits, capacity.rules, capacity.held)
        self.members = [
            tuple(torch.zeros(slots, rows + 1, MOST_GROUPS + 1, device=device) for rows in room)
            for _ in sites
        ]
        self.counts = torch.zeros(slots, MOST_GROUPS + 1, 2, device=device)
        self._before = torch.zeros_like(self.counts)
        # How many groups each slot has that has any.
        self._used: dict[int, int] = {}

    def load(self, slot: int, program: Mapping[Site, SiteProgram], groups: Sequence[RowGroup]) -> None:
        """Let a slot count these groups of its program's rows, from nothing."""
        self.clear(slot)
        self.forget(slot)
        if not groups:
            return
        self._used[slot] = len(groups)
        of_row: dict[RowName, list[int]] = {}
        for number, group in enumerate(groups):
            for row in group:
                of_row.setdefault(row, []).append(number)
        for site, tables in zip(self.sites, self.members, strict=True):
            rows = program.get(site, SiteProgram())
            for table, (stage, edits) in zip(tables, rows.stages(), strict=True):
                if not edits:
                    continue
                # Made on the host, so that the device is written to once.
                members = np.zeros((len(edits), len(groups)), dtype=np.float32)
                for place, edit in enumerate(edits):
                    members[place, of_row.get(RowName(site, stage, edit.probe.key, edit.when), [])] = 1.0
                table[slot, : len(edits), : len(groups)] = torch.from_numpy(members).to(table.device)

    def forget(self, slot: int) -> None:
        """Count a slot's text from nothing again."""
        self.counts[slot] = 0.0

    def clear(self, slot: int) -> None:
        """Let a slot have no groups."""
        if self._used.pop(slot, None) is not None:
            for table in (table for tables in self.members for table in tables):
                table[slot] = 0.0

    def move(self, source: int, target: int) -> None:
        """Let `target` hold what `source` holds, and leave `source` without groups."""
        self.clear(target)
        self.counts[target] = self.counts[source]
        if source in self._used:
            self._used[target] = self._used[source]
            for table in (table for tables in self.members for table in tables):
                table[target] = table[source]
            self.clear(source)

    def remember(self) -> None:
        """Keep what was counted until now, in case the step that comes fails."""
        if (groups := max(self._used.values(), default=0)) > 0:
            self._before[:, :groups] = self.counts[:, :groups]

    def rewind(self) -> None:
        """Go back to what was kept."""
        if (groups := max(self._used.values(), default=0)) > 0:
            self.counts[:, :groups] = self._before[:, :groups]

    def result(self, slot: int) -> Tensor:
        """What was counted for a slot, float32 [G, 2] of its own groups, on the host."""
        return self.counts[slot, : self._used.get(slot, 0)].cpu().clone()

    # -- within the step --------------------------------------------------------------------------------

    def members_of(
        self, batch: int, slot: Tensor | None, rows: tuple[int, int, int], groups: int
    ) -> list[Tensor]:
        """Which rows are of which groups in one slot, or in the first `batch` ones: float32 [B, rows, G] of
        each site."""
        return [
            torch.cat(
                [
                    _of(table[:, :kind, :groups], batch, slot)
                    for table, kind in zip(tables, rows, strict=True)
                ],
                1,
            )
            for tables in self.members
        ]

    def count(
        self,
        acted: Sequence[Tensor],
        tokens: Tokens,
        counted: Tensor,
        slot: Tensor | None,
        rows: tuple[int, int, int],
        groups: int,
    ) -> None:
        """Add at how many tokens groups acted.

        acted: bool [T, rows] of each site; counted: bool [B, Q], which tokens count; slot: the only one of a
        chunk, an int64 [1], None for the first ones; rows, groups: how many are in use.
        """
        batch = counted.shape[0]
        new = count_groups(acted, self.members_of(batch, slot, rows, groups), tokens, counted)
        kept = self.counts[:, :groups]
        if slot is None:
            kept[:batch] += new
        else:
            kept.index_copy_(0, slot, kept.index_select(0, slot) + new)


def _of(held: Tensor, batch: int, slot: Tensor | None) -> Tensor:
    """What is held for one slot, or for the first `batch` ones."""
    return held[:batch] if slot is None else held.index_select(0, slot)


def count_groups(
    acted: Sequence[Tensor], members: Sequence[Tensor], tokens: Tokens, counted: Tensor
) -> Tensor:
    """At how many tokens that are `counted` [B, Q] each group acted, float32 [B, G, 2]: of the prompt, of the
    answer. acted: bool [T, rows], members: float32 [B, rows, G] of each site."""
    return _by_phase(hits_of(acted, members, tokens), tokens, counted)


def hits_of(acted: Sequence[Tensor], members: Sequence[Tensor], tokens: Tokens) -> Tensor:
    """Whether any row of each group acted at each token, at any site: bool [T, G]."""
    hits = [
        tokens.times(at_site.to(torch.float32), mine) for at_site, mine in zip(acted, members, strict=True)
    ]
    return torch.stack(hits).sum(0) > 0.0


def _by_phase(hits: Tensor, tokens: Tokens, counted: Tensor) -> Tensor:
    """How many tokens that are `counted` [B, Q] are hit, float32 [B, G, 2]: of the prompt, of the answer."""
    prompt = tokens.prompt.reshape(counted.shape)
    both = torch.stack((counted & prompt, counted & ~prompt), -1).to(torch.float32)
    of_token = hits.reshape(*counted.shape, -1).to(torch.float32)
    return (of_token[..., None] * both[:, :, None]).sum(1)


def _as_large(one: Tensor, other: Tensor) -> Tensor:
    """Counts with a place for whatever `other` counts: what came later was not counted before."""
    grown = torch.zeros_like(other)
    grown[tuple(slice(size) for size in one.shape)] = one
    return grown


class ActivityTally:
    """What was counted for one request, over all of its sequences."""

    def __init__(self) -> None:
        self._shared: Tensor | None = None
        self._own: Tensor | None = None

    def add(self, all_in_all: Tensor, prompt: Tensor) -> None:
        """Add what was counted for one sequence, and what of it at its prompt, which others may share."""
        own = all_in_all - _as_large(prompt, all_in_all)
        if self._shared is None or self._own is None:
            self._shared, self._own = _as_large(prompt, all_in_all), own
        else:
            shared, before = _as_large(self._shared, all_in_all), _as_large(self._own, all_in_all)
            self._shared, self._own = torch.maximum(shared, _as_large(prompt, all_in_all)), before + own

    def result(self) -> Tensor | None:
        """What all of them come to, of the same shape; None where no sequence ran."""
        return None if self._shared is None or self._own is None else self._shared + self._own

    def forget(self, site: int, place: int) -> None:
        """Count what was counted at one place of a site as nothing."""
        for kept in (self._shared, self._own):
            if kept is not None and place < kept.shape[1]:
                kept[site, place] = 0.0
