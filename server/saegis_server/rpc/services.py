"""What all servicers share: the engine, the model, the catalog, and how they are asked."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saegis_server.engine.engine import Engine
from saegis_server.policy.store import PolicyStore
from saegis_server.rpc.governor import Governor
from saegis_server.rpc.prompts import PromptReader
from saegis_server.rpc.targets import Targets
from saegis_server.rpc.threads import in_own_thread
from saegis_server.sae.catalog import Catalog
from saegis_server.telemetry.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What GetModel tells of the model beside its sites and SAEs."""

    name: str
    architectures: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    num_layers: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the servicers need. `unread_limit`: how many tokens may wait for a stream's reader."""

    engine: Engine
    model: ModelFacts
    prompts: PromptReader
    targets: Targets
    metrics: Metrics
    governor: Governor
    max_message_bytes: int
    unread_limit: int = 4096
    started: float = field(default_factory=time.time)
    _at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @property
    def policies(self) -> PolicyStore | None:
        """The operator's policies; None where nothing governs requests."""
        return self.governor.policies

    @property
    def catalog(self) -> Catalog:
        """The loaded SAEs."""
        return self.targets.catalog

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run what takes long off the event loop, two at once, each in a thread that ends with it."""
        async with self._at_once:
            return await in_own_thread(lambda: function(*args))
