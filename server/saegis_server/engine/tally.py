"""The tally: what was done to one request so far, at each site where its program has rows."""

from collections.abc import Mapping, Sequence

from saegis_server.engine.requests import Receipt, SiteReceipt
from saegis_server.engine.sites import Site
from saegis_server.steering.program import SiteProgram, SteeringProgram


class Tally:
    """Adds up what a step counts: at each site tokens edited, bans fired, the largest ‖Δx‖/‖x‖."""

    def __init__(self, program: SteeringProgram, rows: Mapping[Site, SiteProgram], unmoved: int = 0) -> None:
        """Start at zero; `rows` are all that may come in force, by site; the first `unmoved` tokens stay."""
        self._program, self._unmoved = program, unmoved
        self._counts = {site: [0.0, 0.0, 0.0] for site in rows}

    def add(self, sites: Sequence[Site], counts: Sequence[Sequence[float]]) -> None:
        """Add what was counted at each of the step's sites."""
        for site, (edited, fired, largest) in zip(sites, counts, strict=True):
            if site in self._counts:
                total = self._counts[site]
                self._counts[site] = [total[0] + edited, total[1] + fired, max(total[2], largest)]

    @property
    def steered_tokens(self) -> int:
        """The largest number of tokens edited at any one site."""
        return int(max((counts[0] for counts in self._counts.values()), default=0.0))

    def receipt(self, in_force: Mapping[Site, SiteProgram]) -> Receipt:
        """What was done, as the request is told; `in_force` are the rows that ever were."""
        sites = []
        for site, rows in in_force.items():
            edited, fired, largest = self._counts[site]
            kinds = (len(rows.edits), len(rows.rules), len(rows.bans), len(rows.watches))
            sites.append(SiteReceipt(str(site), *kinds, int(edited), int(fired), largest))
        steered = any(rows.changes_anything for rows in in_force.values())
        first = steered and not self._unmoved
        return Receipt(self._program.digest, steered, tuple(sites), first_token_steered=first)
