"""Decisions: what the policies in force say to one request, and the steering that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from saegis_server.engine.api import UNGUARDED, Guard
from saegis_server.policy.decide.uses import UseOfRequest
from saegis_server.policy.schema.policy import Mode, Transparency
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.program import UNSTEERED, SteeringProgram


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Who asks, in which roles, what model, which edits and watches, and what beyond the ordinary."""

    tenant: str
    roles: frozenset[str]
    model: str
    edits: tuple[RequestEdit, ...] = ()
    uses: tuple[UseOfRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request may not run: policy, rule (or allowance, limit, protection), and field.

    mode: of what says so; only what is enforced denies. shared: it rests on what several policies want
    together, so that its message may tell of each of them.
    """

    policy: str
    rule: str
    message: str
    field: str = ""
    mode: Mode = Mode.ENFORCE
    shared: bool = False


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """A rule that applies to a request. `mode` says whether it acts; `labels` are of its features.

    transparency: whether its policy lets the one who is steered know more than that there is a rule.
    candidate: it is of a candidate, evaluated beside the policy in force; its mode is then SHADOW.
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

    @property
    def name(self) -> str:
        """ "policy/rule", as conditions are named in the engine; "policy/rule (candidate)" of a candidate."""
        return f"{self.policy}/{self.rule}{' (candidate)' if self.candidate else ''}"


@dataclass(frozen=True)
class Decision:
    """What the policies say to a request.

    policy_revision: "name@revision" of each policy that matches, by name, with commas between. program and
    guard are those to run with, the request's own edits and watches included; of a denial they are empty.
    rules: in force and recorded only. would_deny: denials of policies that only audit or shadow. guard
    conditions are named `AppliedRule.name`; those in audit and shadow mode are there with Reaction.RECORD.
    peaks: which rows of the program's `guards`, in the order of `Literal.reading`, the rules of action
    "watch" read: name of the rule and of the feature. ruled_program: that of the rules alone, as of a request
    without edits. asked: the request's own edits and watches. concealed: the names of the policies that
    concern it and tell only that there are rules.
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

    @cached_property
    def digest(self) -> str:
        """What names all that may act on the request: its program, and the conditions beside it."""
        return self.guard.digest_beside(self.program)
