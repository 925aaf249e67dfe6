"""Limits: how much the server does for one principal, for one tenant, and for all callers together."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from pydantic import BaseModel, ConfigDict, Field

from saegis_server.directions.store import DirectionLimits
from saegis_server.engine.api import Delta, Event, Sink
from saegis_server.rpc.auth.identity import Identity
from saegis_server.rpc.wire.problems import BusyError

RETRY_SECONDS = 1.0
_MINUTE = 60.0


class RequestLimits(BaseModel):
    """The limits of one principal or one tenant; None is no limit.

    requests: RPCs at once, waiting ones included. tokens_per_minute: of prompts and completions together.
    bytes_per_minute: of requests. An unused budget grows to at most one minute's. A request may overdraw the
    budget; the next ones are refused until it has recovered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    bytes_per_minute: int | None = Field(default=None, ge=1)


class Limits(BaseModel):
    """All limits. requests, held_bytes: RPCs at once and bytes of requests, of all callers together.
    directions: those that are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: RequestLimits = RequestLimits(requests=512)
    tenant: RequestLimits = RequestLimits(requests=1024)
    requests: int = Field(default=4096, ge=1)
    held_bytes: int = Field(default=256 * 2**20, ge=1024)
    directions: DirectionLimits = DirectionLimits()


@dataclass(slots=True)
class _Budget:
    """A budget that refills within a minute and may fall below zero."""

    per_minute: int
    left: float
    filled: float

    def settle(self, now: float) -> None:
        self.left = min(self.per_minute, self.left + (now - self.filled) * self.per_minute / _MINUTE)
        self.filled = now

    def seconds_until_paid(self) -> float:
        return max(0.0, (1.0 - self.left) * _MINUTE / self.per_minute)


@dataclass(frozen=True, slots=True)
class _Party:
    """A principal or a tenant, and its limits."""

    kind: str
    name: str
    limits: RequestLimits

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


class Limiter:
    """Keeps account of what each caller uses. Any thread may call `spend`; the rest is for the event loop."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        #: By kind and name of a party: its running RPCs, the bytes that they hold, and its budgets by unit.
        self._running = Counter[tuple[str, str]]()
        self._holding = Counter[tuple[str, str]]()
        self._budgets: dict[tuple[str, str, str], _Budget] = {}
        self._lock = Lock()
        self._inside = self._held = 0

    @property
    def inside(self) -> int:
        """How many RPCs are inside."""
        return self._inside

    @property
    def held_bytes(self) -> int:
        """How many bytes of requests are held."""
        return self._held

    @contextmanager
    def enter(self, caller: Identity) -> Iterator["Holding"]:
        """Count an RPC as inside for the length of the block. Raises BusyError beyond a limit."""
        parties = self._parties(caller)
        for party in parties:
            most = party.limits.requests
            if most is not None and self._running[party.key] >= most:
                raise self._full(party, f"has {most} requests running or waiting already")
            self._require_budget(party)
        # A full server still has room for a tenant that has nothing running.
        if self._inside >= self._limits.requests and self._running[parties[1].key] > 0:
            described = f"{self._inside} requests are running or waiting already"
            raise BusyError("SERVER_LIMIT", "requests", described, RETRY_SECONDS)
        self._inside += 1
        for party in parties:
            self._running[party.key] += 1
        holding = Holding(self, caller)
        try:
            yield holding
        finally:
            self._inside -= 1
            for party in parties:
                _lower(self._running, party.key, 1)
            self._release(caller, holding.size)

    def spend(self, caller: Identity, unit: str, amount: int) -> None:
        """Take `tokens` or `bytes` from the caller's and its tenant's budgets, even below zero."""
        with self._lock:
            for party in self._parties(caller):
                if (budget := self._budget(party, unit)) is not None:
                    budget.left -= amount

    def metered(self, caller: Identity, sink: Sink) -> Sink:
        """The sink of a request's events, wrapped so that it spends their tokens."""
        if all(party.limits.tokens_per_minute is None for party in self._parties(caller)):
            return sink

        def take(events: list[Event]) -> None:
            self.spend(
                caller, "tokens", sum(len(event.tokens) for event in events if isinstance(event, Delta))
            )
            sink(events)

        return take

    def _hold(self, caller: Identity, size: int) -> None:
        """Count a request's bytes as held. Raises BusyError."""
        tenant = self._parties(caller)[1]
        own = self._holding[tenant.key]
        if self._held + size > self._limits.held_bytes and own + size > self._limits.held_bytes // 4:
            described = f"{self._held} bytes of requests are held already"
            raise BusyError("SERVER_LIMIT", "bytes", described, RETRY_SECONDS)
        self._held += size
        self._holding[tenant.key] += size
        self.spend(caller, "bytes", size)

    def _release(self, caller: Identity, size: int) -> None:
        self._held -= size
        _lower(self._holding, self._parties(caller)[1].key, size)

    def _parties(self, caller: Identity) -> tuple[_Party, _Party]:
        return (
            _Party("principal", caller.name, self._limits.principal),
            _Party("tenant", caller.tenant, self._limits.tenant),
        )

    def _require_budget(self, party: _Party) -> None:
        with self._lock:
            for unit in ("tokens", "bytes"):
                budget = self._budget(party, unit)
                if budget is not None and (seconds := budget.seconds_until_paid()) > 0.0:
                    described = f"the {party.kind} has had its {budget.per_minute} {unit} a minute"
                    raise BusyError("RATE_LIMITED", party.kind, described, seconds)

    def _budget(self, party: _Party, unit: str) -> _Budget | None:
        per_minute: int | None = getattr(party.limits, f"{unit}_per_minute")
        if per_minute is None:
            return None
        now = self._clock()
        key = (*party.key, unit)
        budget = self._budgets.setdefault(key, _Budget(per_minute, per_minute, now))
        budget.settle(now)
        return budget

    def _full(self, party: _Party, described: str) -> BusyError:
        reason = f"{party.kind.upper()}_LIMIT"
        return BusyError(reason, party.kind, f"the {party.kind} {described}", RETRY_SECONDS)


class Holding:
    """An RPC that is inside, and the bytes that it holds."""

    def __init__(self, limiter: Limiter, caller: Identity) -> None:
        self.size = 0
        self._limiter = limiter
        self.caller = caller

    def add(self, size: int) -> None:
        """Count bytes of the request. Raises BusyError if the server holds too many."""
        self._limiter._hold(self.caller, size)
        self.size += size


def _lower(counter: Counter[tuple[str, str]], key: tuple[str, str], by: int) -> None:
    counter[key] -= by
    if counter[key] <= 0:
        del counter[key]
