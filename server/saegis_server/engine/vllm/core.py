"""The core: what the engine asks of whatever reads and writes its texts, a step after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.steering.site import Site


class Core(Protocol):
    """Texts by the ids that the engine gives them, each in the slot that its order names. For one thread at
    a time."""

    def __len__(self) -> int:
        """How many texts it goes on reading or writing."""

    def add(
        self,
        request_id: str,
        tokens: Sequence[int],
        sampling: SamplingParams,
        order: Order,
        salt: str,
        reads_cache: bool = True,
    ) -> None:
        """Let a text be read from the next step on, and written on until it is dropped.

        salt: names all that acts on it; only texts of one salt share what was read of them. reads_cache:
        whether it may begin behind what is known of its prompt.
        """

    def add_again(
        self, request_id: str, other: str, tokens: Sequence[int], sampling: SamplingParams, salt: str
    ) -> None:
        """Let a text be read from its start again as another request, with what holds now in force."""

    def halt(self, request_id: str) -> None:
        """Read no more of a text for now; what its slot has stays."""

    def drop(self, request_id: str) -> None:
        """Run a text no more, and forget it."""

    def step(self) -> tuple[list[Told], dict[str, int]]:
        """One step: what it gave for each text, and the tokens that were chosen, by request."""

    def books(self, slot: int) -> Books:
        """What was counted for the text in a slot."""

    def holds(self, slot: int) -> list[bool]:
        """Which conditions of a slot held at the last token at which they were judged."""

    def observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from the next step on; see SlotObserving.observe."""

    def firing(self, counts: Tensor) -> dict[tuple[Site, str], Firing]:
        """Counts of observed features as what they did."""

    def forget_prefixes(self) -> None:
        """Forget what was read of texts that have ended."""

    def close(self) -> None:
        """Give back what it holds."""
