"""The schema of a bundle's cases: test requests, and what must come of them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from saegis_server.policy.decide.uses import ORDINARY, Use
from saegis_server.policy.schema.policy import (
    Count,
    Name,
    Number,
    Strength,
    Strict,
    Target,
    Text,
    check_distinct,
)
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import Phase


class CaseEdit(Target):
    """An edit of a case's request. to, strength, threshold: of a redirect, whose value is the factor."""

    op: Op
    site: str = ""
    value: Number | None = None
    unit: Unit = Unit.FEATURE
    phase: Phase = Phase.ALL
    to: Target | None = None
    strength: Strength = 0.0
    threshold: Strength = 0.0

    @model_validator(mode="after")
    def _has_a_target_to_redirect_to(self) -> Self:
        if self.to is None and {"strength", "threshold"} & self.model_fields_set:
            raise ValueError("strength and threshold: are for a redirect, which has `to`")
        return self


class CaseReading(Target):
    """The values that one feature or direction has in a case: a number for each token."""

    prompt: tuple[Number, ...] = ()
    answer: tuple[Number, ...] = ()


class CaseUse(Strict):
    """What a case's request asks for beyond the ordinary. value: of n, temperature and pictures."""

    word: Use
    value: Number | None = None

    @model_validator(mode="after")
    def _has_its_value(self) -> Self:
        if (self.word in ORDINARY) != (self.value is not None):
            problem = "give the value" if self.word in ORDINARY else "has no value"
            raise ValueError(f"{self.word.value}: {problem}")
        return self


class CaseRequest(Strict):
    """The request of a case: its caller, its model, what it asks for, and what is read meanwhile."""

    tenant: str = "default"
    roles: tuple[str, ...] = ("use", "steer")
    model: str = ""
    edits: tuple[CaseEdit, ...] = ()
    uses: tuple[CaseUse, ...] = ()
    readings: tuple[CaseReading, ...] = ()


class Expectation(Strict):
    """What must come of a case's request. What is left out is not checked.

    rules: the ids of the rules that deny it or, if it is allowed, that are in force. fires: the rules whose
    condition comes to hold with the readings. stopped_at: how many of the answer's tokens are sent before it
    is stopped.
    """

    decision: Literal["allow", "deny", "no_policy"]
    rules: tuple[Name, ...] | None = None
    fires: tuple[Name, ...] | None = None
    stopped_at: Count | None = None
    message: str | None = None


class Case(Strict):
    """One case of a bundle: a request, and what must come of it."""

    name: Text
    request: CaseRequest = CaseRequest()
    expect: Expectation


class Cases(Strict):
    """A file of cases, `tests/*.yaml`."""

    apiVersion: Literal["saegis.dev/v1"]
    kind: Literal["PolicyCases"]
    cases: Annotated[tuple[Case, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_distinct_names(self) -> Self:
        names = ((("cases", place, "name"), case.name) for place, case in enumerate(self.cases))
        check_distinct(names, "two cases have the name '{name}'")
        return self
