"""Conflicts: rules of two policies that cannot hold for one request, found before the later one is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.combine import combine
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.schema.policy import EVERY, Match
from saegis_server.problem import Problem


def conflicts(
    bundle: Bundle, compiled: CompiledPolicy, others: Iterable[CompiledPolicy]
) -> Iterator[Problem]:
    """What keeps a bundle's rules from being in force beside those of each other policy.

    Only policies that may concern the same request are compared, two at a time. What three or more make
    impossible together is denied when a request asks for it.
    """
    for other in sorted(others, key=lambda each: each.name):
        if other.name == compiled.name or not may_meet(compiled.policy.match, other.policy.match):
            continue
        for fault in combine((*compiled.standing(), *other.standing()), compiled.world).faults:
            own = [rule for policy, rule in fault.owners if policy == compiled.name]
            source = bundle.sources.get(own[-1]) if own else None
            problem = Problem(
                f"{fault.message}; {other.revision_name} is in force and may concern the same requests",
                ", ".join(f"rules.{rule}" for rule in own) or "rules",
            )
            yield problem if source is None else replace(problem, file=source.file, line=source.line)


def may_meet(one: Match, other: Match) -> bool:
    """Whether one request can concern both; by one role, though a caller with two roles may meet more."""
    pairs = ((one.tenants, other.tenants), (one.roles, other.roles), (one.models, other.models))
    return all(_share(*pair) for pair in pairs)


def _share(one: Sequence[str], other: Sequence[str]) -> bool:
    return EVERY in one or EVERY in other or not set(one).isdisjoint(other)
