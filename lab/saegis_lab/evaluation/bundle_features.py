"""The features that a bundle's redirects and bans act on, and the rows that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.selectors import SelectionError, Selectors
from saegis_server.policy.decide.world import World
from saegis_server.policy.schema.policy import All, Any_, Expression, Not
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.steering.conditions import COMPARISONS_EACH
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
    world = World("model", (named.site,), named.sae.width, Catalog([named]), Capacity(), named=False)
    known = Selectors(world, {})
    try:
        found = [each.feature for path, selector in selectors for each in known.features(selector, path)]
    except SelectionError as error:
        raise ValueError(str(error)) from error
    return tuple(dict.fromkeys(feature.index for feature in found if feature is not None))


def room_for(bundle: Bundle) -> Mapping[str, int]:
    """Room for the rows of a bundle that names features by index, by kind, no less than a server has as it
    starts: what `saegis serve --rows` takes."""
    least, rules = Capacity(), bundle.policy.rules
    readings = sum(_readings(rule.when.if_) for rule in rules if rule.when is not None)
    room = {"rules": 0, "bans": 0, "watches": readings, "conditions": -(-readings // COMPARISONS_EACH)}
    for rule in rules:
        for kind, targets in (("rules", rule.redirect), ("bans", rule.ban)):
            selectors = () if targets is None else targets.features
            room[kind] += sum(len(selector.indices or ()) for selector in selectors)
    return {kind: max(getattr(least, kind), count) for kind, count in room.items()}


def _readings(expression: Expression) -> int:
    """How many readings an expression compares."""
    match expression:
        case All(all=parts) | Any_(any=parts):
            return sum(map(_readings, parts))
        case Not(not_=part):
            return _readings(part)
    return 1
