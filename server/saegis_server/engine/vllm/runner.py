"""The runner's part: what either of vLLM's runners has of the steering, and the worker that has a runner.

A runner lets the model's sites pass through `Steered`, tells it before each forward which tokens of which
texts it reads, and takes the logits before they are sampled. How it does that is all that its adapter says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saegis_server.engine.vllm.draws import drawn
from saegis_server.engine.vllm.operations import SiteOperation
from saegis_server.engine.vllm.orders import Told
from saegis_server.engine.vllm.places import sites_of, steer_model
from saegis_server.engine.vllm.plan import Plan
from saegis_server.engine.vllm.steered import Steered, Unembed


class Written(NamedTuple):
    """A text whose next token is chosen: in which row of the logits, and what has been read and written."""

    row: int
    request_id: str
    prompt: Sequence[int]
    answer: Sequence[int]


class RunnerPart:
    """What a runner has beside vLLM's own."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        """Its plan is in what vLLM was told."""
        plan = Plan.of(vllm_config.additional_config)
        self.steered = Steered(plan.norms, plan.widths, plan.slots, plan.capacity, device, plan.ranked)
        self.layers = plan.layers
        self.told: list[Told] = []
        self._compilation = vllm_config.compilation_config
        self._eager: bool = vllm_config.model_config.enforce_eager

    def put_into(self, model: nn.Module) -> None:
        """Let the sites of a model pass through what steers them. Raises SiteError as `steer_model` does."""
        sites = sites_of(self.steered)
        if not self._eager:
            sites = [(site, SiteOperation(at, str(site), self._compilation)) for site, at in sites]
        steer_model(model, self.layers, sites)

    def zero_block_ids(self, block_ids: list[int]) -> None:
        """Empty blocks of keys and values in every layer, whatever it sees of a text; vLLM's own code leaves
        out those with a window."""
        layers = self._compilation.static_forward_context.values()
        caches = [getattr(layer, "kv_cache", None) for layer in layers]
        seen = {cache.data_ptr(): cache for cache in caches if isinstance(cache, Tensor)}
        for cache in seen.values():
            cache[block_ids] = 0

    def warmup(self, num_kv_blocks: int) -> None:
        """Nothing has to be compiled for that."""

    def sample(
        self,
        logits: Tensor,
        hidden: Tensor,
        unembed: Unembed,
        texts: Iterable[Written],
        sample: Callable[[], Any],
    ) -> Any:
        """End the step, see `Steered.finish`, and give what vLLM samples, with the tokens that are drawn here
        in place of its own.

        texts: those of which a token is chosen; sample: vLLM's own sampling of these logits.
        """
        self.told = self.steered.finish(logits, hidden, unembed)
        own = self._chosen(logits, texts)
        output = sample()
        for row, token in own.items():
            output.sampled_token_ids[row, 0] = token
        return output

    def _chosen(self, logits: Tensor, texts: Iterable[Written]) -> dict[int, int]:
        """The tokens of texts with a seed, by row. Of others, those that are shorter than they may be choose
        no token that ends them."""
        own = {}
        for row, name, prompt, answer in texts:
            order = self.steered.order(name)
            if order.draw is not None:
                own[row] = drawn(logits[row], order.draw, prompt, answer)
            elif len(answer) < order.min_tokens:
                logits[row, list(order.stops)] = -torch.inf
        return own
