"""In this process: vLLM's engine core, whose workers steer, and the few things asked of it.

The one module beside the adapters that imports vLLM. The core is stepped by the caller's thread, so that what
a step gave, readings and outcomes of conditions among them, is known before the next one is scheduled: what a
condition ends is ended before anything further is read.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.engine.vllm.plan import Plan
from saegis_server.steering.site import Site

#: The releases of vLLM with which this engine was tried.
TRIED = ("0.32.0",)
WORKER = "saegis_server.engine.vllm.worker.SteeredWorker"
#: How many tokens a block of the KV cache holds: prefixes are shared by whole ones.
BLOCK = 32


_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class VllmMissingError(ValueError):
    """vLLM is not there, or not as this engine needs it; the message says what to do."""


@dataclass(frozen=True)
class CoreWishes:
    """How vLLM is to run a model: `length` tokens a text, of which at most `chunk` at once and `batch` in a
    step; so many bytes of KV cache for each of so many ranks; compiled or eagerly."""

    path: str
    dtype: torch.dtype
    length: int
    chunk: int
    batch: int
    cache_bytes: int
    compiled: bool = False
    ranks: int = 1


class CoreInProcess:
    """vLLM's engine core and its workers; see `Core`."""

    def __init__(self, plan: Plan, wishes: CoreWishes) -> None:
        """Load the model and make room. Raises VllmMissingError, and ValueError for what vLLM refuses."""
        require_vllm()
        self.length, self.slots = wishes.length, plan.slots
        self._core = _started(plan, wishes)
        if wishes.ranks == 1:
            _here.add(self)
        self._running: set[str] = set()

    # -- texts ----------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        tokens: Sequence[int],
        sampling: SamplingParams,
        order: Order,
        salt: str,
        reads_cache: bool = True,
    ) -> None:
        """Let a text be read and written; see `Core`."""
        self._rpc("saegis_admit", request_id, order)
        self._add(request_id, tokens, sampling, salt, reads_cache)

    def add_again(
        self,
        request_id: str,
        other: str,
        tokens: Sequence[int],
        sampling: SamplingParams,
        salt: str,
    ) -> None:
        """Let a text be read from its start again as another request, with what holds now in force."""
        self._abort(request_id)
        self._rpc("saegis_read_again", request_id, other)
        self._add(other, tokens, sampling, salt, False)

    def drop(self, request_id: str) -> None:
        """Run a text no more, and forget it."""
        self._abort(request_id)
        self._rpc("saegis_leave", request_id)

    def halt(self, request_id: str) -> None:
        """Read no more of a text for now; what its slot has stays."""
        self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._running.discard(request_id)
            self._core.abort_requests([request_id])

    def _add(
        self,
        request_id: str,
        tokens: Sequence[int],
        sampling: SamplingParams,
        salt: str,
        reads_cache: bool,
    ) -> None:
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(tokens),
            mm_features=None,
            sampling_params=_sampling(sampling, self.length - len(tokens), reads_cache),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=salt,
            data_parallel_rank=None,
        )
        made, wave = self._core.preprocess_add_request(request)
        self._core.add_request(made, wave)
        self._running.add(request_id)

    # -- steps ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._running)

    def step(self) -> tuple[list[Told], dict[str, int]]:
        """One step: what it gave for each text, and the tokens that were chosen, by request."""
        outputs, _ = self._core.step()
        chosen = {}
        for output in (each for batch in outputs.values() for each in batch.outputs):
            if output.new_token_ids:
                chosen[output.request_id] = int(output.new_token_ids[-1])
            if output.finish_reason is not None:
                self._running.discard(output.request_id)
        told: list[Told] = self._rpc("saegis_told")
        return told, chosen

    def books(self, slot: int) -> Books:
        """What was counted for the text in a slot."""
        found: Books = self._rpc("saegis_books", slot)
        return found

    def holds(self, slot: int) -> list[bool]:
        """Which conditions of a slot held at the last token at which they were judged."""
        found: list[bool] = self._rpc("saegis_holds", slot)
        return found

    def observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from the next step on."""
        changed: list[tuple[int, int]] = self._rpc("saegis_observe", tuple(features))
        return changed

    def firing(self, counts: torch.Tensor) -> dict[tuple[Site, str], Firing]:
        """Counts of observed features as what they did."""
        found: dict[tuple[Site, str], Firing] = self._rpc("saegis_firing", counts)
        return found

    def read_at_most(self, tokens: int) -> None:
        """Read at most so many tokens in a step, of all texts together."""
        self._core.scheduler.max_num_scheduled_tokens = tokens

    def forget_prefixes(self) -> None:
        """Forget what was read of texts that have ended."""
        self._core.reset_prefix_cache()

    def close(self) -> None:
        """Give back what vLLM holds: with the last core of this process what they share in it, which vLLM
        takes down with any of them."""
        _here.discard(self)
        _closed.append(self._core)
        if not _here:
            while _closed:
                _closed.pop().shutdown()

    def _rpc(self, method: str, *arguments: Any) -> Any:
        """What the first worker answers; all of them do it."""
        return self._core.collective_rpc(method, args=arguments)[0]


#: The cores whose workers are in this process, and those that were closed while another one ran.
_here: set[CoreInProcess] = set()
_closed: list[Any] = []


def require_vllm() -> None:
    """Raise VllmMissingError where vLLM cannot be imported or is of a release that was not tried.

    What its environment says of it counts; without that its core runs in this process, it tells nobody of its
    use, and it logs nothing but errors, to where they do not mix with what the server prints.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise VllmMissingError(
            f"the vllm engine needs vLLM, which cannot be imported ({error}); docs/vllm.md says how to "
            "install it"
        ) from error
    version = vllm.__version__.split("+")[0]
    if version not in TRIED:
        raise VllmMissingError(
            f"vLLM {version} is installed, and this engine was tried with {', '.join(TRIED)} alone"
        )


def _started(plan: Plan, wishes: CoreWishes) -> Any:
    """vLLM's core, its model loaded."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    if not current_platform.is_cpu():
        raise VllmMissingError(
            f"this vLLM is made for {current_platform.device_type}, and the vllm engine was tried on a CPU "
            "alone; docs/vllm.md says how to install vLLM for one"
        )
    arguments = EngineArgs(
        model=wishes.path,
        tokenizer=wishes.path,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        load_format="safetensors",
        use_tqdm_on_load=False,
        dtype=str(wishes.dtype).removeprefix("torch."),
        seed=secrets.randbits(31),
        max_model_len=wishes.length,
        max_num_seqs=plan.slots,
        max_num_batched_tokens=max(wishes.batch, plan.slots),
        enable_chunked_prefill=True,
        long_prefill_token_threshold=min(wishes.chunk, wishes.length),
        kv_cache_memory_bytes=wishes.cache_bytes,
        block_size=BLOCK,
        enable_prefix_caching=True,
        enforce_eager=not wishes.compiled,
        worker_cls=WORKER,
        tensor_parallel_size=wishes.ranks,
        distributed_executor_backend="uni" if wishes.ranks == 1 else "mp",
        generation_config="vllm",
        disable_log_stats=True,
        async_scheduling=False,
        additional_config=plan.told(),
    )
    with _cores_apart(wishes.ranks):
        config = arguments.create_engine_config(usage_context=UsageContext.LLM_CLASS)
        core = EngineCore(config, Executor.get_class(config), log_stats=False)
    _empty_new_blocks(core.scheduler)
    return core


@contextmanager
def _cores_apart(ranks: int) -> Iterator[None]:
    """Give each rank, while it starts, its share of the cores that this process may use."""
    name = "VLLM_CPU_OMP_THREADS_BIND"
    if ranks == 1 or name in os.environ:
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks:
        raise ValueError(f"tensor_parallel_size: {ranks} ranks need a core each, and there are {len(cores)}")
    shares = [cores[len(cores) * rank // ranks : len(cores) * (rank + 1) // ranks] for rank in range(ranks)]
    os.environ[name] = "|".join(",".join(map(str, share)) for share in shares)
    from vllm.envs import disable_envs_cache

    # An engine that was started before keeps what it read of the environment.
    disable_envs_cache()
    try:
        yield
    finally:
        del os.environ[name]


def _empty_new_blocks(scheduler: Any) -> None:
    """Let every block of keys and values be zero when a text gets it, as vLLM does for some models.

    Its attention multiplies what a token does not see by 0, also behind a text's last token in its last
    block, and 0 · NaN is NaN: a text that diverged would take its blocks' next owners with it.
    """
    scheduler.needs_kv_cache_zeroing = True
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        manager._record_new_block_ids = True


def _sampling(sampling: SamplingParams, room: int, reads_cache: bool) -> Any:
    """vLLM's parameters. What ends a text is not for vLLM: the engine drops it."""
    from vllm import SamplingParams as Theirs

    return Theirs(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        max_tokens=room,
        ignore_eos=True,
        detokenize=False,
        skip_reading_prefix_cache=not reads_cache,
    )
