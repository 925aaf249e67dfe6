"""Decisions on requests: the policies in force, and what those that match a request decide together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from saegis_server.engine.admission import GuardError, admit
from saegis_server.engine.api import Guard
from saegis_server.policy.decide.authority import judge_allowances, judge_limits, judge_uses
from saegis_server.policy.decide.claims import Owner, Place
from saegis_server.policy.decide.combine import Combined, StandingRule, Withheld, combine, with_edits
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial, RequestFacts
from saegis_server.policy.decide.world import World
from saegis_server.policy.schema.policy import Mode, Transparency
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram

log = logging.getLogger("saegis.policy")

#: How many sets of matching policies are remembered; most servers have a handful.
_REMEMBERED = 1024
_NO_POLICY = Decision(False, "", (Denial("", "match", "no policy in force concerns this request"),))


@dataclass(frozen=True, eq=False)
class _InForce:
    """What matching policies decide, whatever a request's edits are. plain: the decision without edits."""

    policies: tuple[CompiledPolicy, ...]
    candidates: tuple[CompiledPolicy, ...]
    combined: Combined
    plain: Decision


class PolicySet:
    """Policies of distinct names, and candidates that are evaluated beside them. Immutable; thread-safe.

    A request that no policy concerns is denied. A policy in audit mode concerns a request but denies nothing.
    A policy in shadow mode and a candidate change nothing at all. Raises ValueError for two policies of one
    name, and for policies that were compiled for different sites.
    """

    def __init__(
        self, policies: Iterable[CompiledPolicy] = (), candidates: Iterable[CompiledPolicy] = ()
    ) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        self.candidates = tuple(sorted(candidates, key=lambda policy: policy.name))
        for group in (self.policies, self.candidates):
            names = [policy.name for policy in group]
            if len(set(names)) < len(names):
                raise ValueError(f"two policies have one name: {', '.join(names)}")
        if len({policy.world.sites for policy in (*self.policies, *self.candidates)}) > 1:
            raise ValueError("the policies were compiled for servers with different sites")
        self._known: dict[tuple[tuple[CompiledPolicy, ...], tuple[CompiledPolicy, ...]], _InForce] = {}

    @property
    def revision(self) -> str:
        """The name of all policies in force together, as receipts have it."""
        return revision_of(self.policies)

    def decide(self, facts: RequestFacts) -> Decision:
        """The decision on a request. Never raises: what cannot be evaluated denies it."""
        try:
            in_force = self.in_force(facts.tenant, facts.roles, facts.model)
        except Exception:
            log.exception("the policies could not be combined; the request is denied")
            return Decision(False, self.revision, (_not_evaluated(""),))
        if in_force is None:
            return _NO_POLICY
        return _judged(in_force, facts) if facts.edits or facts.uses else in_force.plain

    def in_force(self, tenant: str, roles: frozenset[str], model: str) -> _InForce | None:
        """What holds for such requests, worked out the first time it is needed; None if no policy matches."""
        policies = tuple(policy for policy in self.policies if policy.matches(tenant, roles, model))
        if all(policy.mode is Mode.SHADOW for policy in policies):
            return None
        candidates = tuple(policy for policy in self.candidates if policy.matches(tenant, roles, model))
        known = self._known.get((policies, candidates))
        if known is None:
            known = _work_out(policies, candidates)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[policies, candidates] = known
        return known


def revision_of(policies: Sequence[CompiledPolicy]) -> str:
    """ "name@revision" of each policy that is not only a shadow, with commas between."""
    return ",".join(policy.revision_name for policy in policies if policy.mode is not Mode.SHADOW)


def _work_out(policies: tuple[CompiledPolicy, ...], candidates: tuple[CompiledPolicy, ...]) -> _InForce:
    standing = [rule for policy in policies for rule in policy.standing()]
    standing += [rule for policy in candidates for rule in policy.standing(candidate=True)]
    combined = _with_flags(_combined(standing, policies[0].world), policies)
    denials = tuple(
        Denial(policy, rule, f"cannot be evaluated: {fault.message}", shared=True)
        for fault in combined.faults
        for policy, rule in fault.owners or (("", "evaluation"),)
    )
    plain = Decision(
        allowed=not denials,
        policy_revision=revision_of(policies),
        denials=denials,
        rules=combined.applied,
        program=combined.program,
        guard=combined.guard,
        peaks=combined.peaks,
        owners=combined.owners,
        ruled_program=combined.program,
        concealed=frozenset(
            policy.name
            for policy in policies
            if policy.mode is not Mode.SHADOW and policy.transparency is Transparency.STEERED
        ),
    )
    return _InForce(policies, candidates, combined, plain)


def _combined(standing: Sequence[StandingRule], world: World) -> Combined:
    try:
        return combine(standing, world)
    except Exception:
        # Rules that are only recorded must not make a request fail.
        log.exception("the rules could not be combined; those that are only recorded are left out")
        return combine((rule for rule in standing if rule.enforced), world)


def _with_flags(combined: Combined, policies: Sequence[CompiledPolicy]) -> Combined:
    """Adds when text is sent and what is done at the first token; the strictest policy counts."""
    acting = [policy.policy for policy in policies if policy.mode is Mode.ENFORCE]
    guard = replace(
        combined.guard,
        hold_back=max((policy.held_back for policy in acting), default=0),
        reads_first_token=any(policy.first_token.conditions for policy in acting),
    )
    moves = any(policy.first_token.rows for policy in acting)
    program = replace(combined.program, moves_first_token=moves) if moves else combined.program
    return replace(combined, guard=guard, program=program)


def _judged(in_force: _InForce, facts: RequestFacts) -> Decision:
    """The decision on a request with edits, watches or uses."""
    plain, combined, edits = in_force.plain, in_force.combined, facts.edits
    denials = [*plain.denials, *_edits_of_withheld(edits, combined.withheld)]
    denials += _bans_of_held(edits, combined.unbannable)
    modes = {(rule.policy, rule.rule): rule.mode for rule in combined.applied}
    would_deny = [
        replace(denial, mode=modes[denial.policy, denial.rule])
        for denial in _edits_of_withheld(edits, combined.recorded)
    ]
    for policy in in_force.policies:
        policy_denials = _of_policy(policy, facts, combined, policy.mode)
        (denials if policy.mode is Mode.ENFORCE else would_deny).extend(policy_denials)
    for policy in in_force.candidates:
        would_deny += _of_policy(policy, facts, combined, Mode.SHADOW)
    acting = [edit for edit in edits if edit.op is not Op.WATCH]
    limits = [*_limits(in_force.policies), *_limits(in_force.candidates, candidate=True)] if acting else []
    decision = replace(plain, rules=(*plain.rules, *limits), would_deny=tuple(would_deny), asked=edits)
    if not denials:
        try:
            bound, world = _bound(in_force.policies), in_force.policies[0].world
            if plain.concealed:
                _check_room(edits, combined, world)
            program, guard = with_edits(combined, edits, bound, world)
            _require_room(program, guard, acting, world)
            return replace(decision, program=program, guard=guard)
        except SteeringError as error:
            denials.append(_does_not_fit(error, edits, combined))
        except Exception:
            log.exception("the program could not be made; the request is denied")
            denials.append(_not_evaluated(""))
    nothing = Decision(False, plain.policy_revision, tuple(denials), tuple(would_deny), decision.rules)
    return replace(nothing, asked=edits, concealed=plain.concealed)


def _of_policy(policy: CompiledPolicy, facts: RequestFacts, combined: Combined, mode: Mode) -> list[Denial]:
    """The denials of one policy, in its mode. A policy that cannot be evaluated denies."""
    try:
        denials = list(_judge_one(policy, facts, combined))
    except Exception:
        log.exception("policy %s could not be evaluated on a request", policy.revision_name)
        denials = [_not_evaluated(policy.name)]
    return [replace(denial, mode=mode) for denial in denials]


def _judge_one(policy: CompiledPolicy, facts: RequestFacts, combined: Combined) -> Iterator[Denial]:
    edits, sites = facts.edits, policy.world.sites
    taken = {site for site, _ in combined.withheld.taken()}
    if policy.mode is not Mode.ENFORCE:
        taken |= {site for site, owners in combined.recorded.taken() if _owns(policy, owners)}
    first = min(taken, key=sites.index, default=None)
    yield from judge_uses(policy.name, policy.allowances, facts.uses)
    yield from judge_allowances(policy.name, policy.allowances, edits)
    yield from judge_limits(policy.name, policy.policy.limits, edits, sites, first)
    yield from policy.protections.judge(edits)


def _owns(policy: CompiledPolicy, owners: Sequence[Owner]) -> bool:
    return any(name == policy.name for name, _ in owners)


def _edits_of_withheld(edits: Sequence[RequestEdit], withheld: Withheld) -> Iterator[Denial]:
    """Denials of edits of what is banned or redirected, and of what it is redirected to.

    A request may ban what is banned or redirected as well, and may watch it if an allowance says so. What is
    redirected to it may not ban either: that would undo the redirect.
    """
    for edit in edits:
        reasons = {
            "this feature is banned": {} if edit.op is Op.BAN else withheld.banned,
            "this feature is redirected": {} if edit.op is Op.BAN else withheld.redirected,
            "a rule redirects to this": withheld.written,
        }
        if edit.op is Op.WATCH:
            continue
        for reason, owners in reasons.items():
            found = (owners.get((edit.site, probe.key), ()) for probe in edit.probes)
            for policy, rule in dict.fromkeys(chain(*found)):
                yield Denial(policy, rule, reason, edit.path)


def _bans_of_held(edits: Sequence[RequestEdit], held: Mapping[Place, tuple[Owner, ...]]) -> Iterator[Denial]:
    """Denials of bans of what a rule holds at a value: such a ban would undo the rule."""
    for edit in edits:
        if edit.op is Op.BAN:
            for policy, rule in held.get((edit.site, edit.edit.probe.key), ()):
                yield Denial(policy, rule, "a rule holds the value of this feature", edit.path)


def _bound(policies: Iterable[CompiledPolicy]) -> float | None:
    """The least of the enforced bounds on how far a request's edits may move an activation."""
    bounds = (policy.policy.limits.max_relative_norm for policy in policies if policy.mode is Mode.ENFORCE)
    return min((bound for bound in bounds if bound is not None), default=None)


def _check_room(edits: Sequence[RequestEdit], combined: Combined, world: World) -> None:
    """Raise SteeringError unless a request's rows find room beside the rules', with no row counted as shared.

    Otherwise a request could count how many of its own bans fit, and so find out which features are banned.
    """
    for site in dict.fromkeys(edit.site for edit in edits):
        at_site = combined.program.sites.get(site, SiteProgram())
        conditional = [guarded.rows.get(site, SiteProgram()).bans for guarded in combined.guard.conditions]
        own = {(edit.op is Op.BAN, edit.edit.probe.key): edit.edit for edit in edits if edit.site == site}
        bans = (*at_site.bans, *chain(*conditional), *(own[key] for key in own if key[0]))
        watches = tuple(edit.edit.probe for edit in edits if edit.site == site and edit.op is Op.WATCH)
        world.capacity.check(site, replace(at_site, bans=bans, watches=watches))


def _require_room(
    program: SteeringProgram, guard: Guard, acting: Sequence[RequestEdit], world: World
) -> None:
    """Raise SteeringError if the edits have no room beside the rules, or keep a ban from holding.

    Faults that come only from what the request reads, or from the rows of conditions, are left to the engine:
    it admits the same program, and refuses the request by its fields.
    """
    try:
        admit(program, guard, world.room)
    except (SteeringError, GuardError):
        sites = dict.fromkeys(edit.site for edit in acting)
        world.room.admit({site: replace(program.sites[site], watches=()) for site in sites})


def _limits(policies: Iterable[CompiledPolicy], candidate: bool = False) -> Iterator[AppliedRule]:
    """The bounds on how far a request's edits may move an activation, as rules that apply."""
    for policy in policies:
        if policy.policy.limits.max_relative_norm is not None:
            mode = Mode.SHADOW if candidate else policy.mode
            rule, transparency = "limits.max_relative_norm", policy.transparency
            yield AppliedRule(policy.name, rule, "limit", mode, transparency, candidate=candidate)


def _does_not_fit(error: SteeringError, edits: Sequence[RequestEdit], combined: Combined) -> Denial:
    """The denial of edits that do not fit the rules. It names the first one that bans or redirects there."""
    owners = sorted(
        owner for site, group in combined.withheld.taken() if site == error.site for owner in group
    )
    policy, rule = owners[0] if owners else ("", "program")
    at_site = [edit for edit in edits if edit.site == error.site]
    bans = [edit for edit in at_site if edit.op is Op.BAN]
    in_bans = any(stage == "bans" for stage, _ in error.rows)
    at_fault = (bans or at_site) if in_bans else at_site
    path = at_fault[-1].path if at_fault else "steering.edits"
    return Denial(policy, rule, str(error), path, shared=True)


def _not_evaluated(policy: str) -> Denial:
    # What went wrong is only logged: it may reveal more of the policy than the caller may know.
    return Denial(policy, "evaluation", "the policy could not be evaluated")
