"""Observing: at how many tokens of each slot's text features fired, counted on the device within the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saegis_server.engine.counts import STRENGTHS, Fired, Firing, Observed
from saegis_server.steering.ranking import Moment, Ranking
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Rows, put_to_read, rows_to_read
from saegis_server.steering.tokens import Tokens

#: The most features that are observed at a site.
MOST_OBSERVED = 256
#: What is counted of a feature: tokens on which it fires, those above each strength, and the sum of these.
_NUMBERS = len(STRENGTHS) + 2


class SlotObserving:
    """What is observed at each site, the same for every slot, and what was counted for each slot.

    rows: at each site, of one slot; scale: float32 [sites, O], 1 over the maximum of each feature, or 0;
    counts: float32 [sites, S, O, 2, _NUMBERS], of the prompt and of the answer. A feature has a place at its
    site as long as it is observed.
    """

    def __init__(
        self,
        sites: tuple[Site, ...],
        slots: int,
        widths: Widths,
        device: torch.device | str,
        rankings: Mapping[Site, Ranking],
    ) -> None:
        """Room for `slots` slots."""
        # One more than there may be: to the compiler a slice that takes a whole tensor is another program.
        room = MOST_OBSERVED + 1
        self.sites, self._rankings = sites, rankings
        self.rows = {site: rows_to_read(room, widths.at(site), device) for site in sites}
        self.scale = torch.zeros(len(sites), room, device=device)
        self.counts = torch.zeros(len(sites), slots, room, 2, _NUMBERS, device=device)
        self._before = torch.zeros_like(self.counts)
        self._bounds = torch.tensor(STRENGTHS, device=device)
        self._places: dict[Site, dict[str, int]] = {site: {} for site in sites}
        # Which dictionaries those of a site are of that have a rank, by their places.
        self._ranked: dict[Site, dict[int, int]] = {site: {} for site in sites}
        #: How many places of a site are in use, at most.
        self.used = 0

    @torch.inference_mode()
    def observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from now on; the places that are others' now, with the site's number."""
        changed = []
        for number, site in enumerate(self.sites):
            wanted = {each.probe.key: each for each in features if each.site == site}
            places = self._places[site]
            for key in [key for key in places if key not in wanted]:
                self._put(number, places.pop(key), None)
            for key, each in wanted.items():
                if key not in places:
                    taken = set(places.values())
                    places[key] = next(place for place in range(MOST_OBSERVED) if place not in taken)
                    self._put(number, places[key], each)
                    changed.append((number, places[key]))
        every = (place for places in self._places.values() for place in places.values())
        self.used = max((place + 1 for place in every), default=0)
        return changed

    def _put(self, site: int, place: int, feature: Observed | None) -> None:
        at, probe = self.sites[site], None if feature is None else feature.probe
        ranking = self._rankings[at]
        self._ranked[at].pop(place, None)
        put_to_read(self.rows[at], place, probe, ranking)
        if probe is not None and probe.rank is not None:
            self._ranked[at][place] = ranking.place(probe)
        maximum = None if feature is None else feature.maximum
        self.scale[site, place] = 1.0 / maximum if maximum else 0.0
        self.counts[site, :, place] = 0.0

    def view(self, site: Site, observed: int) -> Rows:
        """The first rows of a site."""
        return self.rows[site].narrow(1, observed)

    def needs(self, site: Site) -> set[tuple[int, Moment]]:
        """Which cuts what is observed at a site needs."""
        return {(dictionary, Moment.CLEAN) for dictionary in self._ranked[site].values()}

    def forget(self, slot: int) -> None:
        """Count a slot's text from nothing."""
        self.counts[:, slot] = 0.0

    def move(self, source: int, target: int) -> None:
        """Let `target` hold what was counted for `source`."""
        self.counts[:, target] = self.counts[:, source]

    def remember(self) -> None:
        """Keep what was counted until now, in case the step that comes fails."""
        if (used := self.used) > 0:
            self._before[:, :, :used] = self.counts[:, :, :used]

    def rewind(self) -> None:
        """Go back to what was kept."""
        if (used := self.used) > 0:
            self.counts[:, :, :used] = self._before[:, :, :used]

    def result(self, slot: int) -> Tensor:
        """What was counted for a slot, float32 [sites, places, 2, _NUMBERS], on the host."""
        return self.counts[:, slot, : self.used].cpu().clone()

    def firing(self, counts: Tensor) -> dict[tuple[Site, str], Firing]:
        """Counts as those of the features that are observed now."""
        numbers = counts.tolist()
        return {
            (site, key): (_fired(numbers[number][place][0]), _fired(numbers[number][place][1]))
            for number, site in enumerate(self.sites)
            for key, place in self._places[site].items()
            if place < counts.shape[1]
        }

    # -- within the step --------------------------------------------------------------------------------

    def count(self, values: Sequence[Tensor], tokens: Tokens, counted: Tensor, slot: Tensor | None) -> None:
        """Add how often features fired. values: float32 [T, O] of each site; counted: bool [B, Q].

        slot: the only one of a chunk, an int64 [1]; None for the first ones, all of whose tokens are of
        answers.
        """
        read = torch.stack(list(values))
        observed = read.shape[-1]
        strength = read * self.scale[:, None, :observed]
        above = (strength[..., None] > self._bounds).to(torch.float32)
        fires = (read > 0.0).to(torch.float32)
        numbers = torch.cat((fires[..., None], above, strength[..., None]), -1)
        by_token = numbers.reshape(len(read), *counted.shape, observed, _NUMBERS)
        if slot is None:
            own = self.counts[:, : counted.shape[0], :observed, 1]
            own += torch.where(counted[:, 0, None, None], by_token[:, :, 0], 0.0)
            return
        prompt = tokens.prompt.reshape(counted.shape)
        phases = [
            torch.where((counted & phase)[:, :, None, None], by_token, 0.0).sum(2)
            for phase in (prompt, ~prompt)
        ]
        kept = self.counts[:, :, :observed]
        kept.index_copy_(1, slot, kept.index_select(1, slot) + torch.stack(phases, 3))


def _fired(numbers: list[float]) -> Fired:
    tokens, *above, strength = numbers
    return Fired(int(tokens), tuple(map(int, above)), strength)
