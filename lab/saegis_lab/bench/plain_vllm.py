"""Plain vLLM: its own core and workers with nothing of ours in them, for the benchmark to compare with."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory
from typing import Any

from saegis_lab.bench.loads import NEW_TOKENS
from saegis_lab.bench.run import MANY
from saegis_lab.bench.subjects import random_llama
from saegis_server.engine.vllm.in_process import require_vllm

#: Bytes for keys and values: more than MANY texts of the benchmark take.
_CACHE_BYTES = 2**30


class PlainVllm:
    """vLLM's core in this process, stepped here: without its front end, which would only add to its time."""

    def __init__(self, compiled: bool) -> None:
        """compiled: by vLLM's own compiler, as it does where nobody says otherwise; else eagerly, as it runs
        with the steering in it."""
        require_vllm()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor

        with TemporaryDirectory(prefix="saegis-bench-") as folder:
            model = random_llama().make()
            model.save_pretrained(folder)
            arguments = EngineArgs(
                model=folder,
                tokenizer=folder,
                skip_tokenizer_init=True,
                load_format="safetensors",
                use_tqdm_on_load=False,
                dtype="float32",
                max_model_len=model.config.max_position_embeddings,
                max_num_seqs=MANY,
                kv_cache_memory_bytes=_CACHE_BYTES,
                enforce_eager=not compiled,
                distributed_executor_backend="uni",
                disable_log_stats=True,
            )
            config = arguments.create_engine_config(usage_context=UsageContext.LLM_CLASS)
            self._core: Any = EngineCore(config, Executor.get_class(config), log_stats=False)
        self._asked = 0

    def tokens_per_second(self, asked: list[list[int]]) -> float:
        """Generated tokens a second for requests that all come at once, greedy."""
        self._core.reset_prefix_cache()
        start, written = time.perf_counter(), 0
        for prompt in asked:
            self._add(prompt)
        while self._core.scheduler.has_unfinished_requests():
            outputs, _ = self._core.step_fn()
            every = [each for batch in (outputs or {}).values() for each in batch.outputs]
            written += sum(len(each.new_token_ids) for each in every)
        took = time.perf_counter() - start
        if written != len(asked) * NEW_TOKENS:
            raise RuntimeError(f"vLLM wrote {written} tokens instead of {len(asked) * NEW_TOKENS}")
        return written / took

    def _add(self, prompt: list[int]) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        self._asked += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
        request = EngineCoreRequest(
            request_id=f"plain-{self._asked}",
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._core.add_request(*self._core.preprocess_add_request(request))
