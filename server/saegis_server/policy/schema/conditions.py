"""The schema of conditions: readings against thresholds, what joins them, and over which tokens they hold."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from saegis_server.policy.schema.selectors import DirectionSelector, FeatureSelector, Flag, Number, Strict
from saegis_server.steering.conditions import Scope
from saegis_server.steering.operations import Unit

#: Tags of the kinds of expression. No key of a bundle looks like one, so errors can leave them out again.
TAGS = {"all": "<all>", "any": "<any>", "not": "<not>"}
READING_TAG = "<reading>"


class Reading(Strict):
    """One watched feature or direction against a threshold; exactly one of both, and one threshold.

    above: holds where the value is greater; below: where it is less. The value is that of the clean
    activation, before any edit at its site.
    """

    feature: FeatureSelector | None = None
    direction: DirectionSelector | None = None
    above: Number | None = None
    below: Number | None = None
    unit: Literal[Unit.FEATURE, Unit.MAX_ACTIVATION] = Unit.FEATURE

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.feature is None) == (self.direction is None):
            raise ValueError("give one of feature and direction")
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        if self.feature is not None and (self.feature.indices or self.feature.where):
            raise ValueError("feature: a condition reads one feature; use any or all for several")
        return self


class All(Strict):
    """Holds where every part holds."""

    all: Annotated[tuple[Expression, ...], Field(min_length=1)]


class Any_(Strict):
    """Holds where at least one part holds."""

    any: Annotated[tuple[Expression, ...], Field(min_length=1)]


class Not(Strict):
    """Holds where its part does not."""

    not_: Annotated[Expression, Field(alias="not")]


def _kind(value: object) -> str:
    """The tag of an expression, by the key that it has: an error then is about that kind alone."""
    if isinstance(value, dict):
        return next((tag for key, tag in TAGS.items() if key in value), READING_TAG)
    made = ((All, "all"), (Any_, "any"), (Not, "not"))
    return next((TAGS[key] for kind, key in made if isinstance(value, kind)), READING_TAG)


Expression = Annotated[
    Annotated[All, Tag(TAGS["all"])]
    | Annotated[Any_, Tag(TAGS["any"])]
    | Annotated[Not, Tag(TAGS["not"])]
    | Annotated[Reading, Tag(READING_TAG)],
    Discriminator(_kind),
]


class When(Strict):
    """A condition. sticky: once it held it goes on holding for the request's answer."""

    if_: Annotated[Expression, Field(alias="if")]
    over: Scope = Scope.TOKEN
    window: Annotated[int, Field(ge=2, le=1024, strict=True)] | None = None
    sticky: Flag = True

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if (self.over is Scope.WINDOW) != (self.window is not None):
            raise ValueError("window: give it with `over: window`, and only there")
        return self


for _each in (All, Any_, Not, When):
    _each.model_rebuild()
