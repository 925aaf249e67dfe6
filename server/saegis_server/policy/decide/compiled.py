"""Compiled policies: a bundle with its names resolved in one world, and its rules proven to fit there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from saegis.bundles import POLICY_FILE
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.authority import CompiledAllowance, compile_allowance
from saegis_server.policy.decide.claims import needless_conditions
from saegis_server.policy.decide.combine import StandingRule, combine
from saegis_server.policy.decide.compiled_rule import CompiledRule, compile_rule
from saegis_server.policy.decide.protection import Protections, compile_protection
from saegis_server.policy.decide.selectors import SelectionError, Selectors
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import CompileError
from saegis_server.policy.schema.cases import Case
from saegis_server.policy.schema.policy import EVERY, Mode, Policy, Transparency
from saegis_server.problem import Problem
from saegis_server.steering.program import LARGEST_VALUE

T = TypeVar("T")


class _Entry(Protocol):
    @property
    def id(self) -> str: ...


W = TypeVar("W", bound=_Entry)


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """A policy that fits its world. Immutable; decisions only look things up in it.

    rules: by id. selectors: resolve the features and directions that its cases name.
    """

    policy: Policy
    digest: str
    world: World
    rules: Mapping[str, CompiledRule]
    allowances: tuple[CompiledAllowance, ...]
    protections: Protections
    cases: tuple[Case, ...]
    selectors: Selectors

    @property
    def name(self) -> str:
        """Its name."""
        return self.policy.name

    @property
    def serial(self) -> int:
        """Its serial."""
        return self.policy.serial

    @property
    def revision(self) -> str:
        """Its author's name for the revision."""
        return self.policy.revision

    @property
    def revision_name(self) -> str:
        """ "name@revision", as receipts name it."""
        return f"{self.name}@{self.revision}"

    @property
    def urgent(self) -> bool:
        """Whether it also governs requests that were admitted before it came in force."""
        return self.policy.urgent

    @property
    def mode(self) -> Mode:
        """Whether it acts, is recorded, or is only counted."""
        return self.policy.mode

    @property
    def transparency(self) -> Transparency:
        """What receipts say of it."""
        return self.policy.transparency

    def matches(self, tenant: str, roles: frozenset[str], model: str) -> bool:
        """Whether it concerns a request."""
        match = self.policy.match
        return (
            (EVERY in match.tenants or tenant in match.tenants)
            and (EVERY in match.models or model in match.models)
            and (EVERY in match.roles or not roles.isdisjoint(match.roles))
        )

    def standing(self, candidate: bool = False) -> tuple[StandingRule, ...]:
        """Its rules in their modes. Those of a candidate or of a policy in shadow mode are all shadows."""
        shadow = candidate or self.mode is Mode.SHADOW
        return tuple(
            StandingRule(
                policy=self.name,
                rule=rule,
                mode=Mode.SHADOW if shadow else rule.mode or self.mode,
                transparency=self.transparency,
                candidate=candidate,
            )
            for rule in self.rules.values()
        )


def compile_policy(bundle: Bundle, world: World) -> CompiledPolicy:
    """The policy of a bundle in a world.

    Raises CompileError with everything that does not fit: unknown features, labels, SAEs and sites, values
    that cannot be converted to feature units, rules that contradict each other, bans that cannot be proven,
    and more rows than there is room for when every condition holds.
    """
    policy, selectors = bundle.policy, Selectors(world, bundle.directions)
    problems: list[Problem] = []

    def compile_all(written: Iterable[W], compile_one: Callable[[W], T]) -> list[T]:
        compiled = []
        for entry in sorted(written, key=lambda entry: entry.id):
            try:
                compiled.append(compile_one(entry))
            except SelectionError as error:
                problems.extend(placed(problem, entry.id, bundle) for problem in error.problems)
        return compiled

    rules = compile_all(policy.rules, lambda rule: compile_rule(rule, policy.name, selectors))
    allowances = compile_all(policy.allow, lambda entry: compile_allowance(entry, policy.limits, selectors))
    protections = compile_all(policy.protect, lambda entry: compile_protection(entry, selectors))
    bound = policy.limits.max_relative_norm
    if bound is not None and bound > LARGEST_VALUE:
        problems.append(
            Problem(f"must be at most {LARGEST_VALUE:g}", "limits.max_relative_norm", POLICY_FILE)
        )
    problems += _unprovable(bundle, rules, world)
    if problems:
        raise CompileError(problems)
    prepared = Protections(policy.name, tuple(protections))
    prepared.prepare()
    return CompiledPolicy(
        policy=policy,
        digest=bundle.digest,
        world=world,
        rules={rule.id: rule for rule in rules},
        allowances=tuple(allowances),
        protections=prepared,
        cases=bundle.cases,
        selectors=selectors,
    )


def placed(problem: Problem, entry: str, bundle: Bundle) -> Problem:
    """The problem with the file and line where its rule, allowance or protection stands."""
    source = bundle.sources.get(entry)
    return problem if source is None else replace(problem, file=source.file, line=source.line)


def _unprovable(bundle: Bundle, rules: Sequence[CompiledRule], world: World) -> Iterator[Problem]:
    """What keeps the enforced rules from being in force together, and each other rule from being so alone."""
    together = [rule for rule in rules if rule.mode in (None, Mode.ENFORCE)]
    alone = [[rule] for rule in rules if rule not in together]
    for group in (together, *alone):
        combined = combine((StandingRule(bundle.policy.name, rule, Mode.ENFORCE) for rule in group), world)
        for fault in combined.faults:
            ids = [rule for _, rule in fault.owners]
            path = ", ".join(f"rules.{rule}" for rule in ids)
            yield placed(Problem(fault.message, path or "rules"), ids[-1] if ids else "", bundle)
    for pair in needless_conditions([claim for rule in together for claim in rule.claims]):
        _, rule = pair.second.owner
        yield placed(Problem(str(pair), f"rules.{rule}.when"), rule, bundle)
