"""The world that a policy is compiled for: the model, its sites, and the room for rows there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from saegis_server.directions.store import KeptDirection
from saegis_server.sae.catalog import Catalog
from saegis_server.steering.admitted import Room
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity


@dataclass(frozen=True, slots=True)
class Callers:
    """Who may call: the tenant and the roles of each principal."""

    principals: frozenset[tuple[str, frozenset[str]]]

    @property
    def tenants(self) -> frozenset[str]:
        """All their tenants."""
        return frozenset(tenant for tenant, _ in self.principals)

    @property
    def roles(self) -> frozenset[str]:
        """All their roles."""
        return frozenset[str]().union(*(roles for _, roles in self.principals))


@dataclass(frozen=True)
class World:
    """model: its name, as matches name it. sites: in forward order. widths: of the activations there.

    callers: returns who may call now; None where that is not known. named: whether `model` is the name that
    the model is served under, and no placeholder. directions: those that the operator ships, of these widths.
    """

    model: str
    sites: tuple[Site, ...]
    widths: Widths
    catalog: Catalog
    capacity: Capacity
    activations: torch.dtype = torch.float32
    callers: Callable[[], Callers] | None = None
    named: bool = True
    directions: tuple[KeptDirection, ...] = ()

    @cached_property
    def room(self) -> Room:
        """The room to which programs are admitted."""
        ranked = frozenset((each.site, each.sae.digest) for each in self.catalog.entries if each.sae.k)
        return Room(self.sites, self.widths, self.capacity, self.activations, ranked)
