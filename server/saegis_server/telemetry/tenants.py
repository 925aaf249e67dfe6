"""Tenant classes: the few groups by which series tell tenants apart, whoever calls."""

from collections.abc import Mapping, Sequence

#: The class of every tenant that no class names; also what stands for rules and features without a series.
OTHER = "_other"
#: What a label says where there is no room to tell its values apart.
ALL = "_all"
#: The most classes that a server may tell apart, beside OTHER: each multiplies the series of features.
MOST_CLASSES = 8


class TenantClasses:
    """The class of each tenant, by the operator's list."""

    def __init__(self, tenants_by_class: Mapping[str, Sequence[str]] | None = None) -> None:
        """Raises ValueError for more than MOST_CLASSES, and for a tenant of two classes."""
        given = tenants_by_class or {}
        if len(given) > MOST_CLASSES:
            raise ValueError(f"at most {MOST_CLASSES} tenant classes, not {len(given)}")
        self._classes: dict[str, str] = {}
        for name, tenants in given.items():
            for tenant in tenants:
                if (first := self._classes.setdefault(tenant, name)) != name:
                    raise ValueError(f"the tenant {tenant!r} is of the classes {first} and {name}")
        self.names = (*given, OTHER)

    def of(self, tenant: str) -> str:
        """The class of a tenant."""
        return self._classes.get(tenant, OTHER)
