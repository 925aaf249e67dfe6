"""The sampler: now and then a prompt is encoded whole, to tell how many features fire and how well SAEs fit.

It reads the model as it is, between two steps, and encodes in a thread: no step waits for it but once, for as
long as a short prompt takes to be read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.engine.api import EngineError
from saegis_server.engine.pictures import Placed
from saegis_server.rpc.server.giving_way import paced
from saegis_server.rpc.services.shared import Services
from saegis_server.rpc.wire.problems import BusyError
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.left_out import left_out

log = logging.getLogger("saegis.rpc")

#: How many of a prompt's tokens are read, and how many of these are encoded, the last ones.
MOST_READ, MOST_ENCODED = 128, 32
#: How many tokens are encoded at once: with a million features, 32 MB.
_AT_ONCE = 8
#: The next sample comes after at least so many times as long as the last one took.
_SHARE = 50.0


class SAESample(NamedTuple):
    """Of some tokens: how many features are active, int64 [T], and ‖x − x̂‖/‖x‖, float64 [T]."""

    active: Tensor
    error: Tensor


@torch.inference_mode()
def sample(sae: SparseAutoencoder, x: Tensor) -> SAESample:
    """What an SAE makes of activations [T, d]."""
    parts = []
    for chunk in paced(torch.split(x.to(torch.float32), _AT_ONCE)):
        f, wide = sae.encode(chunk), chunk.to(torch.float64)
        error = (wide - sae.decode(f, chunk)).norm(dim=-1) / wide.norm(dim=-1).clamp(min=1e-30)
        parts.append(SAESample((f > 0.0).sum(-1), error))
    return SAESample(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


class SAESampler:
    """Samples the prompts that it is offered, at most one every `Services.sample_seconds`. For the event loop
    only.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._due = 0.0
        self._sampling: asyncio.Task[None] | None = None

    def offer(self, prompt: Sequence[int], pictures: Sequence[Placed] = ()) -> None:
        """Sample a prompt if it is time; its beginning, in which no picture is cut."""
        every = self._services.sample_seconds
        if every <= 0.0 or time.monotonic() < self._due or not self._services.catalog.entries:
            return
        if self._sampling is None or self._sampling.done():
            self._due = time.monotonic() + every
            cut = min((each.start for each in pictures if each.end > MOST_READ), default=MOST_READ)
            whole = [each for each in pictures if each.end <= cut]
            self._sampling = asyncio.create_task(self._sample(list(prompt[:cut]), whole))

    async def _sample(self, tokens: list[int], pictures: Sequence[Placed]) -> None:
        services, began = self._services, time.monotonic()
        try:
            activations = await asyncio.wrap_future(services.engine.capture(tokens, pictures=pictures))
            first = services.engine.first_token.left_out(tokens)
            for loaded in services.catalog.entries:
                kept = ~left_out(tokens, loaded.sae, services.prompts.special, first)
                x = activations[loaded.site].cpu()[kept][-MOST_ENCODED:]
                if len(x):
                    found = await services.in_thread_of("", sample, loaded.sae, x)
                    services.metrics.observe_sae(
                        loaded.id, str(loaded.site), found.active.tolist(), found.error.tolist()
                    )
        except (EngineError, BusyError) as error:
            log.debug("no sample of the SAEs was taken: %s", error)
        except Exception:
            log.exception("no sample of the SAEs was taken")
        self._due = max(self._due, began + _SHARE * (time.monotonic() - began))
