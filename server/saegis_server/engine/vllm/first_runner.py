"""The first runner: the adapter for the model runner that vLLM has on CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from saegis_server.engine.vllm.runner import RunnerPart, Written


class FirstRunner(CPUModelRunner):  # type: ignore[misc]
    """vLLM's runner with the sites of a plan."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.part = RunnerPart(vllm_config, device)
        self._hidden: Tensor | None = None

    def load_model(self, load_dummy_weights: bool = False) -> None:
        super().load_model(load_dummy_weights)
        self.part.put_into(self.model)

    def _zero_block_ids(self, block_ids: list[int]) -> None:
        self.part.zero_block_ids(block_ids)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        starts = self.input_batch.num_computed_tokens_cpu[: self.input_batch.num_reqs]
        names: Sequence[str] = self.input_batch.req_ids
        self.part.steered.begin(names, starts.tolist(), num_scheduled_tokens.tolist())
        return prepared

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        try:
            given = super().execute_model(*args, **kwargs)
        except BaseException:
            self.part.steered.abandon()
            raise
        state = self.execute_model_state
        self._hidden = None if state is None else state.hidden_states
        return given

    def _sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        hidden, self._hidden = self._hidden, None
        sample = partial(super()._sample, logits, spec_decode_metadata)
        if logits is None or hidden is None:
            return sample()
        return self.part.sample(logits, hidden, self.model.compute_logits, self._written(), sample)

    def _written(self) -> Iterator[Written]:
        """The texts of which a token is chosen."""
        for row, name in enumerate(self.input_batch.req_ids):
            if not self.discard_request_mask.np[row]:
                state = self.requests[name]
                yield Written(row, name, state.prompt_token_ids, state.output_token_ids)
