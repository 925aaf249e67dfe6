"""A plain core: texts read and written by Transformers' own code, with the steering that vLLM's workers run.

It stands in for vLLM where there is none, so that the engine and the workers' books are held to the suite on
every machine: one text after the other, with a cache of its own, which begins with what an earlier text of
its salt left, by whole blocks, as vLLM's does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import Firing, Observed
from saegis_server.engine.torch.site_reading import hook
from saegis_server.engine.vllm.draws import Draw, drawn
from saegis_server.engine.vllm.in_process import BLOCK
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Site


@dataclass
class _Text:
    """A text: its tokens, how many of them were read, and what it is chosen by."""

    tokens: list[int]
    prompt: int
    draw: Draw
    salt: str
    cache: DynamicCache = field(default_factory=DynamicCache)
    read: int = 0


class PlainCore:
    """See `engine.vllm.core.Core`. A step reads at most `chunk` tokens of each text."""

    def __init__(self, model: PreTrainedModel, steered: Steered, chunk: int) -> None:
        """Hooks of the steering stay in the model."""
        self.model, self.steered, self.chunk = model, steered, chunk
        self._texts: dict[str, _Text] = {}
        self._left: list[_Text] = []
        for number, site in enumerate(steered.sites):
            hook(model, site, partial(self._pass, number))

    def _pass(self, number: int, x: Tensor) -> Tensor:
        """The activations [1, Q, d] of a site."""
        return self.steered.steer(number, x[0])[None]

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
        text = self._begin(request_id, tokens, sampling, order, salt)
        if reads_cache:
            self._begin_behind(text)

    def _begin(
        self, name: str, tokens: Sequence[int], sampling: SamplingParams, order: Order, salt: str
    ) -> _Text:
        draw = order.draw or Draw(sampling, int(torch.randint(2**62, (1,))), order.stops)
        made = self._texts[name] = _Text(list(tokens), len(tokens), draw, salt)
        return made

    def _begin_behind(self, text: _Text) -> None:
        """Let a text begin behind the most blocks that an earlier one of its salt has read of it."""
        for other in self._left:
            known = min(other.read, len(text.tokens) - 1) // BLOCK * BLOCK
            while known and other.tokens[:known] != text.tokens[:known]:
                known -= BLOCK
            if other.salt == text.salt and known > text.read:
                text.cache, text.read = copy.deepcopy(other.cache), known
                text.cache.crop(known)

    def add_again(
        self, request_id: str, other: str, tokens: Sequence[int], sampling: SamplingParams, salt: str
    ) -> None:
        self.halt(request_id)
        self.steered.read_again(request_id, other)
        self._begin(other, tokens, sampling, self.steered.order(other), salt)

    def halt(self, request_id: str) -> None:
        if (text := self._texts.pop(request_id, None)) is not None:
            self._left.append(text)

    def drop(self, request_id: str) -> None:
        self.halt(request_id)
        self.steered.leave(request_id)

    @torch.inference_mode()
    def step(self) -> tuple[list[Told], dict[str, int]]:
        told: list[Told] = []
        chosen: dict[str, int] = {}
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

    def forget_prefixes(self) -> None:
        self._left.clear()

    def close(self) -> None:
        self._texts.clear()
        self._left.clear()
