"""The features that a bundle's redirects and bans act on, and the rows that they take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.selectors import SelectionError, Selectors
from saegis_server.policy.decide.world import World
from saegis_server.policy.schema.policy import (
    All,
    Any_,
    DirectionSelector,
    FeatureSelector,
    Not,
    Policy,
    Rule,
    When,
)
from saegis_server.policy.schema.policy import Expression as Written
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.steering.conditions import (
    COMPARISONS_EACH,
    GATES_EACH,
    AllOf,
    AnyOf,
    Condition,
    Expression,
    Literal,
    Negation,
    compile_conditions,
)
from saegis_server.steering.site import Widths
from saegis_server.steering.table import Capacity


def filtered_features(bundle: Bundle, loaded: LoadedSAE) -> tuple[int, ...]:
    """The features, each once, in the order of the rules; `loaded` stands for the one SAE that they name.

    Directions are left out. Raises ValueError for a bundle without such features, for features of several
    SAEs, and for a selector that finds nothing in this one.
    """
    selectors = [
        (f"rule {rule.id}.{rule.action}.features[{place}]", selector)
        for rule in bundle.policy.rules
        for targets in (rule.redirect, rule.ban)
        if targets is not None
        for place, selector in enumerate(targets.features)
    ]
    if not selectors:
        raise ValueError(f"the policy {bundle.policy.name} redirects and bans no features")
    names = sorted({selector.sae for _, selector in selectors if selector.sae})
    if len(names) > 1:
        raise ValueError(f"the policy {bundle.policy.name} is about several SAEs: {', '.join(names)}")
    named = replace(loaded, sae=replace(loaded.sae, name=names[0])) if names else loaded
    world = World("model", (named.site,), Widths(named.sae.width), Catalog([named]), Capacity(), named=False)
    known = Selectors(world, {})
    try:
        found = [each.feature for path, selector in selectors for each in known.features(selector, path)]
    except SelectionError as error:
        raise ValueError(str(error)) from error
    return tuple(dict.fromkeys(feature.index for feature in found if feature is not None))


def room_for(policy: Policy) -> dict[str, int]:
    """The room that a policy takes, and no less than a server has as it starts: what `saegis serve --rows`
    takes."""
    return {kind: max(getattr(Capacity(), kind), count) for kind, count in room_taken(policy).items()}


def room_taken(policy: Policy) -> dict[str, int]:
    """How much room the redirects, bans and conditions of a policy take, by kind. It names features by index,
    of one SAE.

    Raises ConditionError for conditions that no server can judge.
    """
    rules = policy.rules
    numbers: dict[tuple[FeatureSelector | DirectionSelector | None, str], int] = {}
    conditions = tuple(_condition(rule.when, numbers) for rule in rules if rule.when is not None)
    # A redirect has a row for each phase.
    redirected = {(row, rule.redirect.phase) for rule in rules if rule.redirect for row in _rows(rule)}
    return {
        "rules": len(redirected),
        "bans": len({row for rule in rules if rule.ban for row in _rows(rule)}),
        "watches": len({read for read, _ in numbers}),
        "conditions": _room_for(conditions, len(numbers)),
    }


def _rows(rule: Rule) -> Iterator[tuple[int | DirectionSelector | None, str]]:
    """What tells the rows of a rule from those of others; those of a rule with a condition stand apart."""
    targets = rule.redirect or rule.ban
    apart = rule.id if rule.when is not None else ""
    if targets is not None:
        for selector in targets.features:
            yield from ((index, apart) for index in selector.indices or (selector.index,))
        yield from ((selector, apart) for selector in targets.directions)


def _condition(
    when: When, numbers: dict[tuple[FeatureSelector | DirectionSelector | None, str], int]
) -> Condition:
    """A condition as the server has it, each reading with a number of its own in each unit."""

    def made(part: Written) -> Expression:
        match part:
            case All():
                return AllOf(tuple(map(made, part.all)))
            case Any_():
                return AnyOf(tuple(map(made, part.any)))
            case Not():
                return Negation(made(part.not_))
        number = numbers.setdefault((part.feature or part.direction, part.unit), len(numbers))
        limit = part.above if part.above is not None else part.below
        return Literal(number, 0.0 if limit is None else limit, above=part.above is not None)

    return Condition(made(when.if_), when.over, when.window or 1, when.sticky)


def _room_for(conditions: tuple[Condition, ...], readings: int) -> int:
    """For how many conditions a server must have room to judge these, which look at so many readings."""
    nothing, places = (False,) * len(conditions), ((0, 0),) * readings
    compiled = compile_conditions(conditions, nothing, nothing, places, sys.maxsize)
    return max(
        len(conditions), -(-compiled.comparisons // COMPARISONS_EACH), -(-compiled.gates // GATES_EACH)
    )
