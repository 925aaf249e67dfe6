"""Admission: rows checked once against what there is room for, with the geometry of what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.projection import HeldGeometry, held_geometry
from saegis_server.steering.reserved import unreserved_moves
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity


@dataclass(frozen=True, slots=True, eq=False)
class AdmittedRows(SiteProgram):
    """The rows of one site as a table takes them.

    geometry: where they hold anything, that of it. moves: beside an operator's redirects, what the request's
    edits write, float32 [E, d]; else None, and they write their own vectors.
    """

    geometry: HeldGeometry | None = None
    moves: Tensor | None = None

    @classmethod
    def of(
        cls, rows: SiteProgram, site: Site | None = None, activations: torch.dtype = torch.float32
    ) -> Self:
        """The rows with their geometry for activations of a dtype; raises as `held_geometry` and
        `unreserved_moves` do."""
        own = {field.name: getattr(rows, field.name) for field in fields(SiteProgram)}
        return cls(
            **own,
            geometry=held_geometry(rows, site, activations),
            moves=unreserved_moves(rows, site),
        )


@dataclass(frozen=True, slots=True)
class Room:
    """Where programs may act, in forward order, how wide activations are there, of which dtype, and how many
    rows there may be.

    ranked: the digests of the SAEs at each site whose features' ranks are known there.
    """

    sites: tuple[Site, ...]
    widths: Widths
    capacity: Capacity
    activations: torch.dtype = torch.float32
    ranked: frozenset[tuple[Site, str]] = frozenset()

    def check(self, site: Site, rows: SiteProgram) -> None:
        """Raise SteeringError for rows for which there is no room here."""
        if site not in self.sites:
            offered = ", ".join(map(str, self.sites)) or "none"
            raise SteeringError(f"{site} is not a site of this server (its sites: {offered})", site)
        self.capacity.check(site, rows)
        if site.written_at != site and (rows.rules or rows.bans):
            kind = "rules" if rows.rules else "bans"
            raise SteeringError(
                f"nothing can be ruled or banned at {site}: what is written does not change what is read",
                site,
                ((kind, 0),),
            )
        edits = [edit for _, stage in rows.stages() for edit in stage]
        targets = (edit.target for edit in edits if edit.target is not None)
        width = self.widths.at(site)
        for probe in (*(edit.probe for edit in edits), *targets, *rows.watches, *rows.guards):
            if probe.read.shape != (width,) or probe.write.shape != (width,):
                raise SteeringError(f"a row at {site} does not have the width {width}", site)
            if probe.rank is not None and (site, probe.rank.dictionary) not in self.ranked:
                raise SteeringError(f"the SAE of {probe.name}, which decides by rank, is not at {site}", site)

    def admit(self, program: Mapping[Site, SiteProgram]) -> dict[Site, AdmittedRows]:
        """The rows of every site, checked. Raises SteeringError for what has no room or cannot be held."""
        admitted = {}
        for site, rows in program.items():
            self.check(site, rows)
            admitted[site] = AdmittedRows.of(rows, site, self.activations)
        return admitted
