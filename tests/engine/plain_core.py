"""A plain core: texts read and written by Transformers' own code, with the steering that vLLM's workers run.

It stands in for vLLM where there is none, so that the engine and the workers' books are held to the suite on
every machine: one text after the other, with a cache of its own, and no prefix is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.torch.site_reading import hook
from saegis_server.engine.vllm.draws import Draw, drawn
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Site


@dataclass
class _Text:
    """A text: its tokens, how many of them were read, and what it is chosen by."""

    tokens: list[int]
    prompt: int
    draw: Draw
    cache: DynamicCache = field(default_factory=DynamicCache)
    read: int = 0


class PlainCore:
    """See `engine.vllm.core.Core`. A step reads at most `chunk` tokens of each text."""

    def __init__(self, model: PreTrainedModel, steered: Steered, chunk: int) -> None:
        """Hooks of the steering stay in the model."""
        self.model, self.steered, self.chunk = model, steered, chunk
        self._texts: dict[str, _Text] = {}
        for number, site in enumerate(steered.sites):
            hook(model, site, lambda x, number=number: steered.steer(number, x[0])[None])

    def __len__(self) -> int:
        return len(self._texts)

    def add(
        self,
        request_id: str,
        tokens: Sequence[int],
        sampling: SamplingParams,
        order: Order,
        salt: str,
        reads_cache: bool = True,
    ) -> None:
        self.steered.admit(request_id, order)
        self._begin(request_id, tokens, sampling, order)

    def _begin(self, name: str, tokens: Sequence[int], sampling: SamplingParams, order: Order) -> None:
        draw = order.draw or Draw(sampling, int(torch.randint(2**62, (1,))), order.stops)
        self._texts[name] = _Text(list(tokens), len(tokens), draw)

    def add_again(
        self, request_id: str, other: str, tokens: Sequence[int], sampling: SamplingParams, salt: str
    ) -> None:
        self.halt(request_id)
        self.steered.read_again(request_id, other)
        self._begin(other, tokens, sampling, self.steered.order(other))

    def halt(self, request_id: str) -> None:
        self._texts.pop(request_id, None)

    def drop(self, request_id: str) -> None:
        self.halt(request_id)
        self.steered.leave(request_id)

    @torch.inference_mode()
    def step(self) -> tuple[list[Told], dict[str, int]]:
        told, chosen = [], {}
        for name, text in self._texts.items():
            part = text.tokens[text.read : text.read + self.chunk]
            self.steered.begin([name], [text.read], [len(part)])
            logits = self._forward(text, part)
            text.read += len(part)
            told += self.steered.finish(logits[-1:], logits, lambda given: given)
            if text.read == len(text.tokens):
                token = drawn(logits[-1], text.draw, text.tokens[: text.prompt], text.tokens[text.prompt :])
                text.tokens.append(token)
                chosen[name] = token
        return told, chosen

    def _forward(self, text: _Text, part: list[int]) -> Tensor:
        """The logits [Q, V] of the next tokens of a text."""
        at = torch.arange(text.read, text.read + len(part))[None]
        logits: Tensor = self.model(
            input_ids=torch.tensor([part]), position_ids=at, past_key_values=text.cache, use_cache=True
        ).logits
        return logits[0].float()

    def books(self, slot: int) -> Books:
        return self.steered.books(slot)

    def holds(self, slot: int) -> list[bool]:
        return self.steered.conditions.holds(slot)

    def observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        return self.steered.observe(features)

    def firing(self, counts: Tensor) -> dict[tuple[Site, str], Firing]:
        return self.steered.observing.firing(counts)

    def close(self) -> None:
        self._texts.clear()
