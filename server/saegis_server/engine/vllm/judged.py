"""Judged: the conditions of the slots that vLLM's workers have, as the engine asks after them."""

from __future__ import annotations

from collections.abc import Sequence

from saegis_server.engine.torch.conditions import ConditionResult
from saegis_server.engine.vllm.core import Core


class CoreConditions:
    """Which conditions held at the last step, and what came of them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def holds(self, slot: int) -> Sequence[bool]:
        """Which conditions of a slot held at the last token at which they were judged."""
        return self._core.holds(slot)

    def result(self, slot: int) -> ConditionResult:
        """What came of a slot's conditions so far, on the host."""
        return self._core.books(slot).conditions


class CoreSlots:
    """The slots of vLLM's workers."""

    def __init__(self, core: Core) -> None:
        self.conditions = CoreConditions(core)

    def read_again(self, slot: int) -> None:
        """Not asked for here: vLLM reads a text again as another request of its own."""
        raise RuntimeError(f"the text of slot {slot} is read again by the engine")
