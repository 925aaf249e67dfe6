"""The second runner: the adapter for vLLM's Model Runner V2, which is what it runs on GPUs.

It needs Triton; on a CPU Triton's interpreter stands in for its compiler, in tests alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.cpu.model_runner import CPUModelRunner

from saegis_server.engine.vllm.runner import RunnerPart, Written


class SecondRunner(CPUModelRunner):  # type: ignore[misc]
    """vLLM's runner with the sites of a plan."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.sampler: Any
        self.part = self.kv_block_zeroer = RunnerPart(vllm_config, device)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.part.put_into(self.model)

    def _init_kv_zero_meta(self) -> None:
        """Blocks are emptied by the part."""

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        batch = super().prepare_inputs(*args, **kwargs)
        starts, counts = batch.num_computed_tokens_np, batch.num_scheduled_tokens
        self.part.steered.begin(batch.req_ids, starts.tolist(), counts.tolist())
        return batch

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().execute_model(*args, **kwargs)
        except BaseException:
            self.part.steered.abandon()
            raise

    def sample(self, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        sampler = self.sampler

        def steered_sampler(logits: Tensor, batch: Any) -> Any:
            unembed, sample = self.model.compute_logits, partial(sampler, logits, batch)
            return self.part.sample(logits, hidden_states, unembed, self._written(batch), sample)

        self.sampler = steered_sampler
        try:
            return super().sample(hidden_states, input_batch, grammar_output)
        finally:
            self.sampler = sampler

    def _written(self, batch: Any) -> Iterator[Written]:
        """The texts of which a token is chosen: those whose prompt ends in this step, or has."""
        states = self.req_states
        ends = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        for row, (name, index) in enumerate(zip(batch.req_ids, batch.idx_mapping_np.tolist(), strict=True)):
            end, prompt = int(ends[row]), int(states.prompt_len.np[index])
            if end >= int(batch.prefill_len_np[row]):
                tokens = states.all_token_ids.gpu[index, :end].tolist()
                yield Written(row, name, tokens[:prompt], tokens[prompt:])
