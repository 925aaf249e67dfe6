"""The first runner: the adapter for the model runner that vLLM has on CPUs, by way of a worker of its own.

The worker is named to vLLM by `worker_cls`; its runner lets the model's sites pass through `Steered`, tells
it before each forward which tokens of which texts it reads, and takes the logits before they are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.vllm.draws import drawn
from saegis_server.engine.vllm.operations import SiteOperation
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.engine.vllm.places import sites_of, steer_model
from saegis_server.engine.vllm.plan import Plan
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Site


class SteeredRunner(CPUModelRunner):  # type: ignore[misc]
    """vLLM's runner with the sites of a plan."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        plan = Plan.of(vllm_config.additional_config)
        self.steered = Steered(plan.norms, plan.widths, plan.slots, plan.capacity, device, plan.ranked)
        self.layers = plan.layers
        self.told: list[Told] = []
        self._hidden: Tensor | None = None

    def load_model(self, load_dummy_weights: bool = False) -> None:
        super().load_model(load_dummy_weights)
        sites = sites_of(self.steered)
        if not self.model_config.enforce_eager:
            compilation = self.compilation_config
            sites = [(site, SiteOperation(at, str(site), compilation)) for site, at in sites]
        steer_model(self.model, self.layers, sites)

    def _zero_block_ids(self, block_ids: list[int]) -> None:
        """Of every layer, whatever it sees of a text; vLLM's own leaves out those with a window."""
        layers = self.compilation_config.static_forward_context.values()
        caches = [getattr(layer, "kv_cache", None) for layer in layers]
        seen = {cache.data_ptr(): cache for cache in caches if isinstance(cache, Tensor)}
        for cache in seen.values():
            cache[block_ids] = 0

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        starts = self.input_batch.num_computed_tokens_cpu[: self.input_batch.num_reqs]
        names: Sequence[str] = self.input_batch.req_ids
        self.steered.begin(names, starts.tolist(), num_scheduled_tokens.tolist())
        return prepared

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        try:
            given = super().execute_model(*args, **kwargs)
        except BaseException:
            self.steered.abandon()
            raise
        state = self.execute_model_state
        self._hidden = None if state is None else state.hidden_states
        return given

    def _sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        hidden, self._hidden = self._hidden, None
        if logits is None or hidden is None:
            return super()._sample(logits, spec_decode_metadata)
        self.told = self.steered.finish(logits, hidden, self.model.compute_logits)
        own = self._chosen(logits)
        output = super()._sample(logits, spec_decode_metadata)
        for row, token in own.items():
            output.sampled_token_ids[row, 0] = token
        return output

    def _chosen(self, logits: Tensor) -> dict[int, int]:
        """The tokens of texts with a seed, by row. Of others, those that are shorter than they may be choose
        no token that ends them."""
        own = {}
        for row, name in enumerate(self.input_batch.req_ids):
            order, state = self.steered.order(name), self.requests[name]
            answer = state.output_token_ids
            if self.discard_request_mask.np[row]:
                continue
            if order.draw is not None:
                own[row] = drawn(logits[row], order.draw, state.prompt_token_ids, answer)
            elif len(answer) < order.min_tokens:
                logits[row, list(order.stops)] = -torch.inf
        return own


class SteeredWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's worker with that runner, and what the engine asks of it by name."""

    model_runner: SteeredRunner

    def init_device(self) -> None:
        given = torch.set_num_threads
        try:
            super().init_device()
        finally:
            # vLLM puts a function there that does nothing, for the whole process.
            torch.set_num_threads = given
        # In place of the one that vLLM has just made.
        self.model_runner = SteeredRunner(self.vllm_config, torch.device("cpu"))

    def saegis_admit(self, request_id: str, order: Order) -> None:
        """A text that vLLM will run as a request of this id."""
        self.model_runner.steered.admit(request_id, order)

    def saegis_read_again(self, request_id: str, other: str) -> None:
        """A text is to be read again, as another request."""
        self.model_runner.steered.read_again(request_id, other)

    def saegis_leave(self, request_id: str) -> None:
        """A text that vLLM runs no more."""
        self.model_runner.steered.leave(request_id)

    def saegis_told(self) -> list[Told]:
        """What the last step gave; told once, by the first rank."""
        told, self.model_runner.told = self.model_runner.told, []
        return [] if self.rank else told

    def saegis_books(self, slot: int) -> Books:
        """What was counted for the text in a slot."""
        return self.model_runner.steered.books(slot)

    def saegis_holds(self, slot: int) -> list[bool]:
        """Which conditions of a slot held last."""
        return self.model_runner.steered.conditions.holds(slot)

    def saegis_observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from now on."""
        return self.model_runner.steered.observe(features)

    def saegis_firing(self, counts: Tensor) -> dict[tuple[Site, str], Firing]:
        """Counts of observed features as what they did."""
        return self.model_runner.steered.observing.firing(counts)
