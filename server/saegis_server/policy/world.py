"""The world that a policy is compiled for: what is served, where it can be steered, with how much room."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saegis_server.sae.catalog import Catalog
from saegis_server.steering.table import Capacity


@dataclass(frozen=True)
class World:
    """model: its name, as matches name it. sites: in forward order. width: d at every site."""

    model: str
    sites: tuple[str, ...]
    width: int
    catalog: Catalog
    capacity: Capacity
    activations: torch.dtype = torch.float32
