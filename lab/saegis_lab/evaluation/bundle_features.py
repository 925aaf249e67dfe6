"""The features that a bundle's redirects and bans act on."""

from __future__ import annotations

from dataclasses import replace

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.selectors import SelectionError, Selectors
from saegis_server.policy.decide.world import World
from saegis_server.sae.catalog import Catalog, LoadedSAE
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
