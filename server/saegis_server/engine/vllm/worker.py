"""The worker: vLLM's own with a runner that steers, and what the engine asks of it by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.cpu_worker import CPUWorker

from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.engine.vllm.runner import RunnerPart
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Site


class SteeredWorker(CPUWorker):  # type: ignore[misc]
    """vLLM finds it by `worker_cls`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_num_threads = torch.set_num_threads

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        # Until here vLLM has a function in its place that does nothing, for the whole process: without that
        # it would let one thread alone compute, as is right on a GPU.
        try:
            super().load_model(*args, **kwargs)
        finally:
            torch.set_num_threads = self._set_num_threads

    def init_device(self) -> None:
        super().init_device()
        # In place of the one that vLLM has just made.
        if self.use_v2_model_runner:
            from saegis_server.engine.vllm.second_runner import SecondRunner as Runner
        else:
            from saegis_server.engine.vllm.first_runner import FirstRunner as Runner
        self.model_runner = Runner(self.vllm_config, torch.device("cpu"))

    @property
    def part(self) -> RunnerPart:
        """What the runner has of the steering."""
        part: RunnerPart = self.model_runner.part
        return part

    @property
    def steered(self) -> Steered:
        """The rows of its texts."""
        return self.part.steered

    def saegis_admit(self, request_id: str, order: Order) -> None:
        """A text that vLLM will run as a request of this id."""
        self.steered.admit(request_id, order)

    def saegis_read_again(self, request_id: str, other: str) -> None:
        """A text is to be read again, as another request."""
        self.steered.read_again(request_id, other)

    def saegis_leave(self, request_id: str) -> None:
        """A text that vLLM runs no more."""
        self.steered.leave(request_id)

    def saegis_told(self) -> list[Told]:
        """What the last step gave; told once, by the first rank."""
        told, self.part.told = self.part.told, []
        return [] if self.rank else told

    def saegis_books(self, slot: int) -> Books:
        """What was counted for the text in a slot."""
        return self.steered.books(slot)

    def saegis_holds(self, slot: int) -> list[bool]:
        """Which conditions of a slot held last."""
        return self.steered.conditions.holds(slot)

    def saegis_observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from now on."""
        return self.steered.observe(features)

    def saegis_firing(self, counts: Tensor) -> dict[tuple[Site, str], Firing]:
        """Counts of observed features as what they did."""
        return self.steered.observing.firing(counts)
