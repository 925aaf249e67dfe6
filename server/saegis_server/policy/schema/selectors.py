"""The schema's words that rules, conditions and cases share: names, numbers, and what is selected."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from saegis_server.steering.program import LARGEST_VALUE

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
#: A file of directions: flat, so that its path has one spelling.
DIRECTIONS_PATTERN = r"^directions/[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}\.safetensors$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)]
Strength = Annotated[float, Field(ge=0.0, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(Strict):
    """A set of labelled features: those whose label fits every key that is given.

    subject, language: one of the label's subjects, languages. min_precision: its precision is known and at
    least this.
    """

    harmful: Flag | None = None
    subject: Text | None = None
    language: Text | None = None
    min_precision: Share | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.model_fields_set == set():
            raise ValueError("give at least one of harmful, subject, language and min_precision")
        return self


class FeatureSelector(Strict):
    """Features of one SAE: by index, by exact label, or a set of labels. Exactly one of the three.

    sae: its id; may be left out where the server has one.
    """

    sae: str = ""
    index: Index | None = None
    indices: Annotated[tuple[Index, ...], Field(min_length=1)] | None = None
    label: Text | None = None
    where: Where | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("index", "indices", "label", "where") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of index, indices, label and where, not {' and '.join(given) or 'none'}"
            )
        if self.indices is not None and len(set(self.indices)) < len(self.indices):
            raise ValueError("indices: one stands there twice")
        return self


class DirectionSelector(Strict):
    """A direction: one tensor [d] of a safetensors file under the bundle's `directions/`, at a site.

    tensor: its name in the file; may be left out where the file holds one. site: may be left out where the
    server has one.
    """

    file: Annotated[str, StringConstraints(pattern=DIRECTIONS_PATTERN)]
    tensor: str = ""
    site: str = ""


class Targets(Strict):
    """What a rule is about: features, directions, or both; at least one."""

    features: tuple[FeatureSelector, ...] = ()
    directions: tuple[DirectionSelector, ...] = ()

    @model_validator(mode="after")
    def _has_some(self) -> Self:
        if not self.features and not self.directions:
            raise ValueError("name at least one of features and directions")
        return self
