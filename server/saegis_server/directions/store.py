"""The store of directions: the operator's, and each tenant's own, by digest and by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site

#: What directions may be called. No name is as long as a digest.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NAME, _DIGEST = re.compile(NAME_PATTERN), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class KeptDirection:
    """A direction that is kept. site: where an edit is that names none; None where it has none. shipped:
    whether it is the operator's."""

    probe: Probe
    name: str = ""
    site: Site | None = None
    shipped: bool = False

    @classmethod
    def of(
        cls, vector: Tensor, name: str = "", site: Site | None = None, shipped: bool = False
    ) -> KeptDirection:
        """That of a vector, float32 [d]: its probe is the one that an edit with these numbers gets. Raises
        ValueError as `Probe.direction` does."""
        return cls(Probe.direction(vector), name, site, shipped)

    @property
    def digest(self) -> str:
        """The SHA-256 of its unit vector, in hexadecimal."""
        return digest_of_direction(self.probe)

    @property
    def size(self) -> int:
        """How many bytes its numbers have."""
        return int(self.probe.read.nbytes)

    @property
    def order(self) -> tuple[bool, str, str]:
        """What sorts directions: by name, those without one last, then by digest."""
        return not self.name, self.name, self.digest


class DirectionLimits(BaseModel):
    """How much may be kept: directions and bytes of their numbers, of a tenant and of all tenants together.
    Those of the operator do not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: int = Field(default=64, ge=0)
    tenant_bytes: int = Field(default=4 * 2**20, ge=0)
    total: int = Field(default=1024, ge=0)
    total_bytes: int = Field(default=64 * 2**20, ge=0)


DEFAULT_LIMITS = DirectionLimits()


class DirectionTakenError(Exception):
    """A name means another direction already, or a direction is kept under another name or site. field: which
    of "name" and "site"."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field
        self.description = description


class AmbiguousNameError(LookupError):
    """A name means one of the tenant's directions and another of the operator's."""


class DirectionLimitError(Exception):
    """A limit leaves no room for one more direction. limit: its name, such as "directions.tenant"."""

    def __init__(self, limit: str, most: int) -> None:
        unit = "bytes of directions" if limit.endswith("bytes") else "directions"
        whose = "a tenant" if "tenant" in limit else "the server"
        super().__init__(f"{whose} keeps at most {most} {unit} (the limit {limit}); delete one first")
        self.limit = limit
        self.most = most


class Owned:
    """The directions of one owner, by digest and by name."""

    def __init__(self, directions: Iterable[KeptDirection] = ()) -> None:
        self.by_digest: dict[str, KeptDirection] = {}
        self.by_name: dict[str, KeptDirection] = {}
        for direction in directions:
            self.add(direction)

    def add(self, direction: KeptDirection) -> None:
        """Take one more, whose digest and name are no other's."""
        self.by_digest[direction.digest] = direction
        if direction.name:
            self.by_name[direction.name] = direction

    def remove(self, direction: KeptDirection) -> None:
        """Forget one of them."""
        del self.by_digest[direction.digest]
        self.by_name.pop(direction.name, None)

    @property
    def size(self) -> int:
        """How many bytes the numbers of all of them have."""
        # Copied at once, since metrics are read on another thread.
        return sum(each.size for each in list(self.by_digest.values()))


class Uploaded(NamedTuple):
    """How many directions there are, and how many bytes their numbers have."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """The directions that one tenant may refer to: its own and the operator's."""

    own: Owned
    shipped: Owned

    @classmethod
    def of_operator(cls, shipped: Iterable[KeptDirection]) -> Self:
        """What everybody may refer to: the operator's directions alone."""
        return cls(Owned(), Owned(shipped))

    def __iter__(self) -> Iterator[KeptDirection]:
        every = (*self.own.by_digest.values(), *self.shipped.by_digest.values())
        return iter(sorted(every, key=lambda each: each.order))

    def of_digest(self, digest: str) -> KeptDirection | None:
        """The one with this digest, the tenant's own before the operator's."""
        return self.own.by_digest.get(digest) or self.shipped.by_digest.get(digest)

    def of_name(self, name: str) -> KeptDirection | None:
        """The one of this name. Raises AmbiguousNameError."""
        own, shipped = self.own.by_name.get(name), self.shipped.by_name.get(name)
        if own is not None and shipped is not None and own.digest != shipped.digest:
            raise AmbiguousNameError(
                f"{name!r} names one of the tenant's directions ({own.digest}) and another of the operator's "
                f"({shipped.digest}); give the digest"
            )
        return own or shipped


#: That of a server, or of a command, that keeps none.
NO_DIRECTIONS = Shelf.of_operator(())


class DirectionStore:
    """All directions that are kept. Only `uploaded` is safe to use from several threads."""

    def __init__(
        self,
        limits: DirectionLimits = DEFAULT_LIMITS,
        shipped: Iterable[KeptDirection] = (),
        uploaded: Iterable[tuple[str, KeptDirection]] = (),
    ) -> None:
        """uploaded: what tenants have uploaded before, each with its tenant, whatever room there is now."""
        self._limits = limits
        self._shipped = Owned(shipped)
        self._own: dict[str, Owned] = {}
        for tenant, direction in uploaded:
            self.keep(tenant, direction)

    @property
    def uploaded(self) -> Uploaded:
        """How much all tenants have uploaded. Any thread may ask."""
        every = list(self._own.values())
        return Uploaded(sum(len(each.by_digest) for each in every), sum(each.size for each in every))

    def shelf(self, tenant: str) -> Shelf:
        """What a tenant may refer to, as long as nothing changes."""
        return Shelf(self._own.get(tenant) or NO_DIRECTIONS.own, self._shipped)

    def admit(self, tenant: str, new: KeptDirection) -> KeptDirection | None:
        """The direction as it is kept already; None if it can be kept.

        Raises DirectionTakenError and DirectionLimitError.
        """
        shelf = self.shelf(tenant)
        if (old := shelf.own.by_digest.get(new.digest)) is not None:
            return _same(old, new)
        for owned, whose in ((shelf.own, "another direction's"), (shelf.shipped, "the operator's")):
            other = owned.by_name.get(new.name)
            if other is not None and other.digest != new.digest:
                raise DirectionTakenError("name", f"{new.name!r} is {whose} already ({other.digest})")
        own, every = shelf.own, self.uploaded
        for limit, most, used in (
            ("tenant", self._limits.tenant, len(own.by_digest) + 1),
            ("tenant_bytes", self._limits.tenant_bytes, own.size + new.size),
            ("total", self._limits.total, every.number + 1),
            ("total_bytes", self._limits.total_bytes, every.size + new.size),
        ):
            if used > most:
                raise DirectionLimitError(f"directions.{limit}", most)
        return None

    def keep(self, tenant: str, direction: KeptDirection) -> None:
        """Keep a direction that is admitted."""
        self._own.setdefault(tenant, Owned()).add(direction)

    def drop(self, tenant: str, direction: KeptDirection) -> None:
        """Forget one of a tenant's own."""
        self._own[tenant].remove(direction)


def digest_of_direction(probe: Probe) -> str:
    """The digest in the key of a direction's probe."""
    return probe.key.partition(":")[2]


def is_name(text: str) -> bool:
    """Whether a direction may be called so."""
    return _NAME.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether a text is a whole digest."""
    return _DIGEST.fullmatch(text) is not None


def _same(old: KeptDirection, new: KeptDirection) -> KeptDirection:
    """The direction as it is kept. Raises DirectionTakenError where it is to have another name or site."""
    if new.name not in ("", old.name):
        raise DirectionTakenError("name", f"the direction is kept already, as {old.name or old.digest!r}")
    if new.site not in (None, old.site):
        raise DirectionTakenError("site", f"the direction is kept already, at {old.site or 'no site'}")
    return old
