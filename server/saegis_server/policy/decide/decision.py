"""Decisions: what the policies in force decide on one request, and the steering that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from saegis_server.engine.api import UNGUARDED, Guard, rows_of
from saegis_server.engine.counts import RowGroup, RowName
from saegis_server.policy.decide.uses import UseOfRequest
from saegis_server.policy.schema.policy import Mode, Transparency
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What policies judge of a request: its caller, its model, its edits and watches, and its uses."""

    tenant: str
    roles: frozenset[str]
    model: str
    edits: tuple[RequestEdit, ...] = ()
    uses: tuple[UseOfRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request may not run: policy, rule (or allowance, limit, protection), and field.

    mode: that of the rule; only an enforced one denies. shared: it rests on several policies together, so
    that its message may tell of each of them.
    """

    policy: str
    rule: str
    message: str
    field: str = ""
    mode: Mode = Mode.ENFORCE
    shared: bool = False


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """A rule that applies to a request. `mode` says whether it acts; `labels` are those of its features.

    transparency: whether its policy lets the caller know more than that there is a rule. candidate: whether
    it belongs to a candidate, evaluated beside the policy in force; its mode is then SHADOW. phase: the
    tokens at which it may change anything.
    """

    policy: str
    rule: str
    action: str
    mode: Mode
    transparency: Transparency
    reason: str = ""
    labels: tuple[str, ...] = ()
    conditional: bool = False
    candidate: bool = False
    phase: Phase = Phase.ALL

    @property
    def name(self) -> str:
        """ "policy/rule", as conditions are named in the engine; "policy/rule (candidate)" of a candidate."""
        return f"{self.policy}/{self.rule}{' (candidate)' if self.candidate else ''}"


@dataclass(frozen=True)
class Decision:
    """What the policies decide on a request.

    policy_revision: "name@revision" of each policy that matches, by name, separated by commas. program,
    guard: what the request runs with, its own edits and watches included; empty for a denial. rules: those in
    force and those only recorded. would_deny: denials of policies in audit or shadow mode. Conditions of the
    guard are named by `AppliedRule.name`; those in audit and shadow mode have Reaction.RECORD. peaks: what
    the rules of action "watch" read: the row of the program's `guards`, in the order of `Literal.reading`,
    and the names of the rule and of the feature. ruled_program: the program of the rules alone, without the
    request's edits. asked: the request's own edits and watches. concealed: the names of the policies that
    concern the request and reveal only that there are rules. owners: of each row that always acts, the
    enforced rules that it stands for, by policy and id; also of rows that the program does not have.
    """

    allowed: bool
    policy_revision: str
    denials: tuple[Denial, ...] = ()
    would_deny: tuple[Denial, ...] = ()
    rules: tuple[AppliedRule, ...] = ()
    program: SteeringProgram = UNSTEERED
    guard: Guard = UNGUARDED
    peaks: tuple[tuple[int, str, str], ...] = field(default=())
    ruled_program: SteeringProgram = UNSTEERED
    asked: tuple[RequestEdit, ...] = ()
    concealed: frozenset[str] = frozenset()
    owners: Mapping[RowName, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @cached_property
    def target_rows(self) -> Mapping[tuple[str, str], Mapping[tuple[Site, str], RowGroup]]:
        """The rows of each enforced rule that has any, by policy and id, and by what they change: its site
        and the key of its probe. A row may be that of several rules, whose phases it then has together."""
        by_name = {rule.name: (rule.policy, rule.rule) for rule in self.rules}
        rows: dict[tuple[str, str], dict[tuple[Site, str], set[RowName]]] = {}
        for name, _ in rows_of(self.program, self.guard):
            owners = self.owners.get(name, ())
            if name.when:
                owners = (by_name[self.guard.conditions[name.when - 1].name],)
            for owner in owners:
                rows.setdefault(owner, {}).setdefault((name.site, name.key), set()).add(name)
        return {
            owner: {place: frozenset(names) for place, names in by_place.items()}
            for owner, by_place in sorted(rows.items())
        }

    @cached_property
    def rule_rows(self) -> Mapping[tuple[str, str], RowGroup]:
        """All rows of each enforced rule that has any, by policy and id."""
        return {owner: frozenset().union(*rows.values()) for owner, rows in self.target_rows.items()}

    @cached_property
    def digest(self) -> str:
        """The digest of all that may act on the request: its program, and the conditions beside it."""
        return self.guard.digest_beside(self.program)
