"""The step's context: what attention and the sites need to know while a step runs through the model."""

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from saegis_server.engine.torch.conditions import StepConditions
from saegis_server.steering.apply import Readings
from saegis_server.steering.site import Site
from saegis_server.steering.table import TableView
from saegis_server.steering.tokens import Tokens


class Mode(Enum):
    """What runs: one token for each of the first slots, a chunk of one slot's prompt, or a plain capture."""

    IDLE = "idle"
    DECODE = "decode"
    PREFILL = "prefill"
    CAPTURE = "capture"


@dataclass(slots=True)
class KVCache:
    """Keys and values of every layer, each [slots, kv heads, length, width]; the two may differ in width."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(
        cls,
        layers: list[tuple[int, int, int]],
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> "KVCache":
        """An empty cache; `layers` gives (kv heads, width of keys, width of values) of each layer."""

        def make(place: int) -> list[Tensor]:
            return [
                torch.zeros(slots, layer[0], length, layer[place], dtype=dtype, device=device)
                for layer in layers
            ]

        return cls(make(1), make(2))

    def apart(self, length: int) -> "KVCache":
        """An empty cache of a single slot of `length` tokens, for the same model on the same device."""

        def make(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.new_zeros(1, tensor.shape[1], length, tensor.shape[3]) for tensor in tensors]

        return KVCache(make(self.keys), make(self.values))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` to slot `target`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self, slot: int, start: int, end: int) -> None:
        """Forget the places `start` to `end` of a slot."""
        for tensor in (*self.keys, *self.values):
            tensor[slot, :, start:end] = 0.0


@dataclass(slots=True)
class StepContext:
    """Set when a step begins, read by attention and sites, emptied when it ends.

    positions: int64 [B, Q]; places: int64 [B, Q], where in the cache they are written: what is no token of a
    text, where nothing is read; slot: int64 [1] in prefill; length: how much of the cache is read; tokens:
    the step's B · Q tokens, None where nothing is steered; views: each site's table rows for this step;
    conditions: those of its slots; unmoved: bool [B · Q], the tokens that no row moves, None where there can
    be none. readings: what happened at each site, by token. keeps: the sites whose clean activations a step
    gives out; kept: those of this one, [B · Q, d] in the model's dtype.
    """

    mode: Mode = Mode.IDLE
    cache: KVCache | None = None
    positions: Tensor | None = None
    places: Tensor | None = None
    slot: Tensor | None = None
    length: int = 0
    tokens: Tokens | None = None
    conditions: StepConditions | None = None
    unmoved: Tensor | None = None
    views: dict[Site, TableView] = field(default_factory=dict)
    readings: dict[Site, Readings] = field(default_factory=dict)
    captured: dict[Site, Tensor] = field(default_factory=dict)
    keeps: frozenset[Site] = frozenset()
    kept: dict[Site, Tensor] = field(default_factory=dict)

    def begun(self) -> tuple[KVCache, Tensor]:
        """The cache of the running step, and where it writes. Raises RuntimeError if none is running."""
        if self.cache is None or self.places is None:
            raise RuntimeError("attention was called outside a step")
        return self.cache, self.places
