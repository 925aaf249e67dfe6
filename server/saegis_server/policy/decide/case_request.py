"""Case requests: a case's request and readings, in the form in which policies judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from saegis_server.policy.decide.claims import Place
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decision import RequestFacts
from saegis_server.policy.decide.selectors import Selected, SelectionError, Selectors
from saegis_server.policy.decide.uses import beyond
from saegis_server.policy.schema.cases import CaseEdit, CaseRequest
from saegis_server.policy.schema.policy import DirectionSelector, FeatureSelector
from saegis_server.problem import Problem
from saegis_server.sae.request_edit import EditError, RequestEdit, Wish, request_edit
from saegis_server.steering.operations import Unit


@dataclass(frozen=True)
class Readings:
    """What is read while a case is answered: by place, the value at each token; 0 where none is given.

    prompt, answer: how many tokens each of them has; a prompt has at least one.
    """

    prompt: int
    answer: int
    values: Mapping[Place, tuple[tuple[float, ...], tuple[float, ...]]]

    def at_prompt(self, place: Place, token: int) -> float:
        """The value at a token of the prompt."""
        return _at(self.values.get(place, ((), ()))[0], token)

    def at_answer(self, place: Place, token: int) -> float:
        """The value at a token of the answer."""
        return _at(self.values.get(place, ((), ()))[1], token)


def _at(values: tuple[float, ...], token: int) -> float:
    return values[token] if token < len(values) else 0.0


def facts_of(request: CaseRequest, compiled: CompiledPolicy) -> RequestFacts:
    """The request as policies judge it. Raises SelectionError for an edit that no request could make."""
    edits = tuple(
        _edit(edit, compiled.selectors, f"steering.edits[{place}]")
        for place, edit in enumerate(request.edits)
    )
    model = request.model or compiled.world.model
    uses = tuple(beyond(use.word, use.value, f"uses[{place}]") for place, use in enumerate(request.uses))
    return RequestFacts(
        tenant=request.tenant,
        roles=frozenset(request.roles),
        model=model,
        edits=edits,
        uses=tuple(use for use in uses if use is not None),
    )


def readings_of_case(request: CaseRequest, compiled: CompiledPolicy) -> Readings:
    """The values of a case's readings. Raises SelectionError for what no rule of the policy reads."""
    read = {
        reading.key
        for rule in compiled.rules.values()
        for reading in (*rule.readings, *(rule.targets if rule.action == "watch" else ()))
    }
    values: dict[Place, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    for number, reading in enumerate(request.readings):
        path = f"request.readings[{number}]"
        for selected in _targets(reading.feature, reading.direction, compiled.selectors, path):
            if selected.key not in read:
                raise SelectionError(Problem(f"no rule reads {selected.name}", path))
            if selected.key in values:
                raise SelectionError(Problem(f"the values of {selected.name} stand there twice", path))
            values[selected.key] = (reading.prompt, reading.answer)
    return Readings(
        prompt=max([1, *(len(prompt) for prompt, _ in values.values())]),
        answer=max([0, *(len(answer) for _, answer in values.values())]),
        values=values,
    )


def _targets(
    feature: FeatureSelector | None, direction: DirectionSelector | None, selectors: Selectors, path: str
) -> tuple[Selected, ...]:
    if feature is not None:
        return selectors.features(feature, f"{path}.feature")
    if direction is not None:
        return (selectors.direction(direction, f"{path}.direction"),)
    raise SelectionError(Problem("give one of feature and direction", path))


def _edit(edit: CaseEdit, selectors: Selectors, path: str) -> RequestEdit:
    targets = _targets(edit.feature, edit.direction, selectors, path)
    if len(targets) > 1:
        raise SelectionError(Problem(f"must name one feature; it names {len(targets)}", f"{path}.feature"))
    (target,) = targets
    site = selectors.site(edit.site, f"{path}.site") if edit.site else target.site
    if target.feature is not None and site != target.site:
        raise SelectionError(Problem(f"{target.name} is at {target.site}, not at {site}", f"{path}.site"))
    wish = Wish(
        op=edit.op,
        value=edit.value,
        unit=None if edit.unit is Unit.FEATURE else edit.unit,
        phase=edit.phase,
        to=None if edit.to is None else selectors.written(edit.to, site, f"{path}.to"),
        strength=edit.strength,
        threshold=edit.threshold,
    )
    try:
        return request_edit(path, replace(target, site=site), wish)
    except EditError as error:
        raise SelectionError(Problem(str(error), f"{path}.{error.field}")) from error
