"""The tally: what was done to one request so far, at each site where its program has rows."""

from collections.abc import Mapping, Sequence

from saegis_server.engine.receipts import Receipt, SiteReceipt
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.site import Site


class _Count:
    """What was counted at one place: tokens edited, bans fired, the sum of ‖Δx‖/‖x‖ and the largest one."""

    def __init__(self) -> None:
        self._prompt, self._answers, self.largest = [0.0] * 3, [0.0] * 3, 0.0

    def add(self, all_in_all: Sequence[float], prompt: Sequence[float]) -> None:
        """Add what was counted for one sequence, and what of it at its prompt, which others may share."""
        *sums, largest = all_in_all
        self._prompt = [max(pair) for pair in zip(self._prompt, prompt, strict=False)]
        own = (whole - shared for whole, shared in zip(sums, prompt, strict=False))
        self._answers = [before + new for before, new in zip(self._answers, own, strict=True)]
        self.largest = max(self.largest, largest)

    @property
    def edited(self) -> int:
        """Tokens edited."""
        return int(self._prompt[0] + self._answers[0])

    @property
    def fired(self) -> int:
        """Bans fired."""
        return int(self._prompt[1] + self._answers[1])

    @property
    def mean(self) -> float:
        """The mean ‖Δx‖/‖x‖ of the tokens edited, 0 without any."""
        moves = self._prompt[2] + self._answers[2]
        return min(moves / self.edited, self.largest) if self.edited else 0.0


class Tally:
    """Adds up what a step counts: at each site, and at all of them together."""

    def __init__(self, digest: str, rows: Mapping[Site, SiteProgram], unmoved: int = 0) -> None:
        """Start at zero. `digest` names all that may act, `rows` are all that may come in force, by site; the
        first `unmoved` tokens stay."""
        self._digest, self._unmoved = digest, unmoved
        self._counts, self._anywhere = {site: _Count() for site in rows}, _Count()

    def add(
        self,
        sites: Sequence[Site],
        counts: Sequence[Sequence[float]],
        prompt: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add what was counted for a sequence at each of the step's sites, and at all together.

        prompt: what of that was counted at its prompt, if the request has other sequences: a prompt's tokens
        count once.
        """
        shared = [(0.0, 0.0, 0.0)] * len(counts) if prompt is None else prompt
        for site, count, of_prompt in zip((*sites, None), counts, shared, strict=True):
            place = self._anywhere if site is None else self._counts.get(site)
            if place is not None:
                place.add(count, of_prompt)

    @property
    def steered_tokens(self) -> int:
        """How many tokens were edited at any site."""
        return self._anywhere.edited

    def receipt(self, in_force: Mapping[Site, SiteProgram]) -> Receipt:
        """What was done, as the request is told; `in_force` are the rows that ever were."""
        sites = []
        for site, rows in in_force.items():
            count = self._counts[site]
            kinds = (len(rows.edits), len(rows.rules), len(rows.bans), len(rows.watches))
            sites.append(SiteReceipt(site, *kinds, count.edited, count.fired, count.largest, count.mean))
        first = any(rows.changes_anything for rows in in_force.values()) and not self._unmoved
        return Receipt(self._digest, self.steered_tokens > 0, tuple(sites), first_token_steered=first)
