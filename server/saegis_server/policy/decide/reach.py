"""Reach: names in a match that fit nothing on this server, and allowances that reveal what is concealed.

A policy that matches nothing is in force but governs nobody: requests then go on under other policies.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from saegis.bundles import POLICY_FILE
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.authority import CompiledAllowance
from saegis_server.policy.decide.compiled import CompiledPolicy, placed
from saegis_server.policy.decide.selectors import Selected
from saegis_server.policy.decide.world import Callers, World
from saegis_server.policy.schema.policy import EVERY, Match, Mode, Transparency
from saegis_server.problem import Problem
from saegis_server.steering.operations import Op

#: Letters and digits that look like Latin letters, beyond those that Unicode's own equivalence finds.
_ALIKE = str.maketrans("авекмнорстухіјѕԁԛԝһӏαβγεηικνορτυχ01ıɡ", "abekmhopctyxijsdqwhlabyenikvoptuxolig")
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Reach:
    """What was found.

    unmatched: what cannot be meant, since it matches nothing at all or looks like a name that exists. stray:
    names that match nothing, beside others that do.
    """

    unmatched: tuple[Problem, ...] = ()
    stray: tuple[Problem, ...] = ()


def reach(bundle: Bundle, world: World, callers: Callers | None) -> Reach:
    """Which names in a bundle's match fit nothing here. callers: None where it is not known who may call."""
    match = bundle.policy.match
    unmatched: list[Problem] = []
    stray: list[Problem] = []
    models = frozenset((world.model,)) if world.named else None
    for key, known, unknown in (
        ("models", models, "is not the model of this server"),
        (
            "tenants",
            None if callers is None else callers.tenants,
            "is the tenant of nobody who may call this server",
        ),
        ("roles", None if callers is None else callers.roles, "is a role of nobody who may call this server"),
    ):
        names: Sequence[str] = getattr(match, key)
        if known is None or EVERY in names:
            continue
        strays = list(_strays(key, names, known, unknown))
        nothing = len(strays) == len(names)
        for problem, alike in strays:
            problem = _at_match(problem, bundle)
            (unmatched if nothing or alike else stray).append(problem)
    if not unmatched and callers is not None and not _concerns_somebody(match, callers):
        message = "nobody who may call this server has one of these tenants and one of these roles"
        unmatched.append(_at_match(Problem(message, "match"), bundle))
    return Reach(tuple(unmatched), tuple(stray))


def _strays(
    key: str, names: Sequence[str], known: Collection[str], unknown: str
) -> Iterator[tuple[Problem, bool]]:
    """Each name that is none of the known ones, and whether it looks like one."""
    shown = ", ".join(sorted(known)[:_MOST_NAMES]) + (" ..." if len(known) > _MOST_NAMES else "")
    shapes = {_shape(name): name for name in sorted(known, reverse=True)}
    for place, name in enumerate(names):
        if name in known:
            continue
        alike = shapes.get(_shape(name))
        near = alike or next(iter(get_close_matches(name, known, 1)), None)
        hint = f"; did you mean {near!r}?" if near else ""
        message = f"{name!r} {unknown}: there is {shown or 'none'}{hint}"
        yield Problem(message, f"match.{key}[{place}]"), alike is not None


def _shape(name: str) -> str:
    """One form for names that differ only in case, spaces, invisible characters, accents and lookalikes."""
    plain = unicodedata.normalize("NFKD", name).casefold().translate(_ALIKE)
    # Without control and format characters, separators and marks.
    visible = (character for character in plain if unicodedata.category(character)[0] not in "CZM")
    return "".join(visible).replace("l", "i")


def _concerns_somebody(match: Match, callers: Callers) -> bool:
    return any(
        (EVERY in match.tenants or tenant in match.tenants)
        and (EVERY in match.roles or not roles.isdisjoint(match.roles))
        for tenant, roles in callers.principals
    )


def _at_match(problem: Problem, bundle: Bundle) -> Problem:
    """The problem with the file and line of the match, or of the name in it, that it is about."""
    source = bundle.match_sources.get(problem.path)
    if source is None:
        return replace(problem, file=POLICY_FILE)
    return replace(problem, file=source.file, line=source.line)


def revealed_by_allowances(bundle: Bundle, compiled: CompiledPolicy) -> Iterator[Problem]:
    """Warnings about allowances by which a request could find out what the policy conceals."""
    if compiled.transparency is not Transparency.STEERED:
        return
    claims = [
        claim
        for rule in compiled.rules.values()
        if (rule.mode or compiled.mode) is Mode.ENFORCE
        for claim in rule.claims
    ]
    written = [claim.to for claim in claims if claim.to is not None]
    ruled = [*(claim.target for claim in claims), *written]
    reserved = [*(claim.target for claim in claims if claim.op in (Op.BAN, Op.REDIRECT)), *written]
    for allowance in compiled.allowances:
        faults = []
        if Op.WATCH in allowance.ops and _covers(allowance, ruled, any_vector=True):
            faults.append("lets requests watch what the rules move, before and after it is moved")
        edits, bans = allowance.ops - {Op.WATCH, Op.BAN}, Op.BAN in allowance.ops
        if (edits and _covers(allowance, reserved)) or (bans and _covers(allowance, written)):
            faults.append("allows edits of what the rules ban or redirect, and those are denied all the same")
        for fault in faults:
            problem = Problem(
                f"{fault}: that tells what is ruled, and the policy says transparency: steered",
                f"allow.{allowance.id}",
            )
            yield placed(problem, allowance.id, bundle)


def _covers(allowance: CompiledAllowance, targets: Sequence[Selected], any_vector: bool = False) -> bool:
    """Whether an allowance covers any of these or, with `any_vector`, directions at any of their sites."""
    at_sites = [one for one in targets if allowance.sites is None or one.site in allowance.sites]
    if allowance.directions and any(any_vector or one.feature is None for one in at_sites):
        return True
    features = {one.key for one in at_sites if one.feature is not None}
    return bool(features if allowance.features is None else features & allowance.features)
