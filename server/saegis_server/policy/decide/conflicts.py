"""Conflicts: rules of two policies that cannot hold for one request, found before the second is in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.combine import combine
from saegis_server.policy.decide.compiled import CompiledPolicy, placed
from saegis_server.policy.schema.policy import EVERY, Match
from saegis_server.problem import Problem


def conflicts(
    bundle: Bundle, compiled: CompiledPolicy, others: Iterable[CompiledPolicy]
) -> Iterator[Problem]:
    """What keeps a bundle's rules from being in force beside the rules of each other policy.

    Only policies that may concern the same request are compared, two at a time. A conflict among three or
    more is not found here; a request that all of them concern is denied.
    """
    for other in sorted(others, key=lambda policy: policy.name):
        if other.name == compiled.name or not may_meet(compiled.policy.match, other.policy.match):
            continue
        for fault in combine((*compiled.standing(), *other.standing()), compiled.world).faults:
            own = [rule for policy, rule in fault.owners if policy == compiled.name]
            problem = Problem(
                f"{fault.message}; {other.revision_name} is in force and may concern the same requests",
                ", ".join(f"rules.{rule}" for rule in own) or "rules",
            )
            yield placed(problem, own[-1] if own else "", bundle)


def may_meet(first: Match, second: Match) -> bool:
    """Whether one request can match both by a single role. A caller with two roles may match more."""
    pairs = ((first.tenants, second.tenants), (first.roles, second.roles), (first.models, second.models))
    return all(_share(*pair) for pair in pairs)


def _share(first: Sequence[str], second: Sequence[str]) -> bool:
    return EVERY in first or EVERY in second or not set(first).isdisjoint(second)
