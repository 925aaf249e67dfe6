"""What all servicers share: the engine, the model, the catalog, and the pools for their work."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saegis_server.directions.folder import UploadFolder
from saegis_server.directions.store import DirectionStore
from saegis_server.engine.api import Engine
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.context import CallContext
from saegis_server.rpc.auth.governor import Governor
from saegis_server.rpc.auth.identity import ANONYMOUS, identity
from saegis_server.rpc.server.giving_way import giving_way
from saegis_server.rpc.server.limits import Limiter, Limits
from saegis_server.rpc.server.threads import WorkPool
from saegis_server.rpc.services.pictures import PictureDesk
from saegis_server.rpc.wire.prompts import PromptReader, most_characters
from saegis_server.rpc.wire.targets import Targets
from saegis_server.sae.catalog import Catalog
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.usage import UsageBook

T = TypeVar("T")
Context = CallContext


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What GetModel returns about the model, beside its sites and SAEs."""

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
    """Everything that the servicers need.

    unread_limit: how many tokens may wait for a stream's reader. admission: work that a generation needs
    before it can run. heavy: all other work; no generation waits for it. sample_seconds: how often a prompt
    is encoded whole for metrics, 0 for never. usage: how every feature is used, where that is counted.
    directions: those that requests may refer to; uploads: the folder of uploaded ones, if there is one.
    pictures: where those of requests are decoded.
    """

    engine: Engine
    model: ModelFacts
    prompts: PromptReader
    targets: Targets
    metrics: Metrics
    governor: Governor
    max_message_bytes: int
    unread_limit: int = 4096
    sample_seconds: float = 0.0
    usage: UsageBook | None = None
    directions: DirectionStore = field(default_factory=DirectionStore)
    uploads: UploadFolder | None = None
    pictures: PictureDesk = field(default_factory=PictureDesk)
    started: float = field(default_factory=time.time)
    limiter: Limiter = field(default_factory=lambda: Limiter(Limits()))
    admission: WorkPool = field(default_factory=lambda: WorkPool("admission", 2, most_waiting=256))
    heavy: WorkPool = field(default_factory=lambda: WorkPool("heavy work", 1, most_waiting=64))

    @property
    def policies(self) -> PolicyStore | None:
        """The operator's policies; None if nothing governs requests."""
        return self.governor.policies

    @property
    def catalog(self) -> Catalog:
        """The loaded SAEs."""
        return self.targets.catalog

    def own_targets(self) -> Targets:
        """What the caller's edits and watches may name, its tenant's directions among it."""
        tenant = identity.get(ANONYMOUS).tenant
        return self.targets.with_directions(self.directions.shelf(tenant))

    @property
    def longest_text(self) -> int:
        """How many characters a text may have that is read whole."""
        return most_characters(self.engine.max_length)

    def work(self) -> dict[str, float]:
        """How much work is inside, and how many directions are kept, by metric."""
        return {
            "saegis_requests_inside": self.limiter.inside,
            "saegis_request_bytes_held": self.limiter.held_bytes,
            "saegis_admission_waiting": self.admission.waiting,
            "saegis_heavy_work_waiting": self.heavy.waiting,
            "saegis_pictures_waiting": self.pictures.waiting,
            "saegis_directions_kept": self.directions.uploaded.number,
            "saegis_direction_bytes_kept": self.directions.uploaded.size,
        }

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run heavy work off the event loop, fairly among tenants. It gives way to requests that run, see
        `giving_way`. Raises BusyError."""
        return await self.in_thread_of(identity.get(ANONYMOUS).tenant, function, *args)

    async def in_thread_of(self, tenant: str, function: Callable[..., T], *args: Any) -> T:
        """The same in the name of a tenant."""
        gentle = giving_way(function, lambda: self.engine.stats().running > 0, self.model.device == "cpu")
        return await self.heavy.run(tenant, gentle, *args)

    async def before_running(self, function: Callable[..., T], *args: Any) -> T:
        """Run work that a generation waits for off the event loop, fairly among tenants. Raises BusyError."""
        return await self.admission.run(identity.get(ANONYMOUS).tenant, function, *args)


class Servicer:
    """The base of the servicers. They raise exceptions, which the interceptor maps to statuses."""

    def __init__(self, services: Services) -> None:
        self.services = services
