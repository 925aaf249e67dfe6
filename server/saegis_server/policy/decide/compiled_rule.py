"""Compiled rules: one rule of a policy with its targets and its condition resolved in the world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from saegis_server.policy.decide.claims import Claim
from saegis_server.policy.decide.selectors import Faults, Selected, SelectionError, Selectors
from saegis_server.policy.schema.policy import (
    All,
    Any_,
    Ban,
    Cap,
    Clamp,
    Floor,
    Mode,
    Not,
    Reading,
    Redirect,
    Rule,
    Scale,
    Targets,
    When,
)
from saegis_server.policy.schema.policy import Expression as Written
from saegis_server.problem import Problem
from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Expression, Literal, Negation
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import Phase, Redirection
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRule:
    """One rule. mode: its own; None where its policy's mode holds.

    targets: those of its action, by site and key; none for stop, refuse and record. claims: what a ban,
    clamp, cap, floor, scale or redirect requires of each target. condition: its literals are numbered by
    `readings`.
    """

    id: str
    action: str
    mode: Mode | None
    reason: str
    message: str
    targets: tuple[Selected, ...] = ()
    claims: tuple[Claim, ...] = ()
    condition: Condition | None = None
    readings: tuple[Selected, ...] = ()

    @property
    def phase(self) -> Phase:
        """The tokens at which it may change anything: all of its claims have that of its action."""
        return self.claims[0].phase if self.claims else Phase.ALL

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, each once, of the features that it changes or, if there are none, that it reads."""
        features = (selected.feature for selected in self.targets or self.readings)
        labels = (feature.label for feature in features if feature is not None)
        return tuple(dict.fromkeys(label.label for label in labels if label is not None))

    def renumbered(self, number: Callable[[Selected], int]) -> Condition | None:
        """Its condition with each reading numbered by `number`."""
        if self.condition is None:
            return None
        numbers = [number(reading) for reading in self.readings]
        return replace(self.condition, expression=_renumbered(self.condition.expression, numbers))


def compile_rule(rule: Rule, policy: str, selectors: Selectors) -> CompiledRule:
    """The rule in the world of `selectors`. Raises SelectionError with all that is wrong with it."""
    path = f"rules.{rule.id}"
    faults = Faults()
    targets: tuple[Selected, ...] = ()
    claims: tuple[Claim, ...] = ()
    condition, readings = None, tuple[Selected, ...]()
    action = getattr(rule, rule.action)
    if isinstance(action, Targets):
        with faults.gathered():
            targets = selectors.targets(action, f"{path}.{rule.action}")
            claims = tuple(_claims(rule, policy, action, targets, selectors, f"{path}.{rule.action}"))
    if rule.when is not None:
        with faults.gathered():
            condition, readings = _condition(rule.when, selectors, f"{path}.when.if")
    faults.raise_any()
    return CompiledRule(
        id=rule.id,
        action=rule.action,
        mode=rule.mode,
        reason=rule.reason or "",
        message=rule.refuse.message if rule.refuse is not None else "",
        targets=targets,
        claims=claims,
        condition=condition,
        readings=readings,
    )


def _claims(
    rule: Rule, policy: str, action: Targets, targets: Sequence[Selected], selectors: Selectors, path: str
) -> Iterator[Claim]:
    owner, conditional = (policy, rule.id), rule.when is not None
    for target in targets:
        to: Selected | None = None
        redirection: Redirection | None = None
        match action:
            case Ban():
                op, value, relative = Op.BAN, action.strength, False
            case Redirect():
                to, op, relative = selectors.written(action.to, target.site, f"{path}.to"), Op.REDIRECT, False
                strengths = action.strength, action.threshold
                value, redirection = target.redirected(to, action.factor, action.unit, strengths, path)
            case Clamp():
                op = Op.CLAMP_IF_ACTIVE if action.if_active else Op.CLAMP
                value, relative = target.scaled(action.value, action.unit, f"{path}.unit")
            case Cap() | Floor():
                op = Op.CAP if isinstance(action, Cap) else Op.FLOOR
                value, relative = target.scaled(action.value, action.unit, f"{path}.unit")
            case Scale():
                op, value, relative = Op.SCALE, action.factor, False
            case _:
                return
        yield Claim(owner, target, op, value, relative, action.phase, conditional, to, redirection)


def _condition(when: When, selectors: Selectors, path: str) -> tuple[Condition, tuple[Selected, ...]]:
    readings: dict[tuple[Site, str], tuple[int, Selected]] = {}
    expression = _expression(when.if_, selectors, path, readings)
    condition = Condition(expression, when.over, when.window or 1, when.sticky)
    return condition, tuple(selected for _, selected in readings.values())


def _expression(
    written: Written, selectors: Selectors, path: str, readings: dict[tuple[Site, str], tuple[int, Selected]]
) -> Expression:
    match written:
        case All():
            return AllOf(_parts(written.all, selectors, f"{path}.all", readings))
        case Any_():
            return AnyOf(_parts(written.any, selectors, f"{path}.any", readings))
        case Not():
            return Negation(_expression(written.not_, selectors, f"{path}.not", readings))
    selected = _read(written, selectors, path)
    number, _ = readings.setdefault(selected.key, (len(readings), selected))
    limit = written.above if written.above is not None else written.below
    threshold, _ = selected.scaled(0.0 if limit is None else limit, Unit(written.unit), f"{path}.unit")
    return Literal(number, threshold, above=written.above is not None)


def _parts(
    parts: Sequence[Written],
    selectors: Selectors,
    path: str,
    readings: dict[tuple[Site, str], tuple[int, Selected]],
) -> tuple[Expression, ...]:
    """All parts of an expression. Raises SelectionError with the problems of all of them."""
    expressions: list[Expression] = []
    faults = Faults()
    for place, part in enumerate(parts):
        with faults.gathered():
            expressions.append(_expression(part, selectors, f"{path}[{place}]", readings))
    faults.raise_any()
    return tuple(expressions)


def _read(reading: Reading, selectors: Selectors, path: str) -> Selected:
    if reading.feature is not None:
        return selectors.feature(reading.feature, f"{path}.feature")
    if reading.direction is not None:
        return selectors.direction(reading.direction, f"{path}.direction")
    raise SelectionError(Problem("give one of feature and direction", path))


def _renumbered(expression: Expression, numbers: Sequence[int]) -> Expression:
    match expression:
        case Literal():
            return replace(expression, reading=numbers[expression.reading])
        case AllOf():
            return AllOf(tuple(_renumbered(part, numbers) for part in expression.parts))
        case AnyOf():
            return AnyOf(tuple(_renumbered(part, numbers) for part in expression.parts))
        case Negation():
            return Negation(_renumbered(expression.part, numbers))
