"""The schema of a policy: every key that a bundle's YAML may have, with its type, range and default."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, LiteralString, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from saegis_server.policy.decide.uses import ORDINARY, Use
from saegis_server.steering.conditions import Scope
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.program import LARGEST_VALUE
from saegis_server.steering.rows import Phase

API_VERSION = "saegis.dev/v1"
#: Stands for every tenant, role or model in a match.
EVERY = "*"
REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
#: A file of directions. There are no subfolders, so that its path has one spelling.
DIRECTIONS_PATTERN = r"^directions/[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}\.safetensors$"
#: The digest of a direction that is shipped.
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
#: Tags of the kinds of expression. No key of a bundle looks like one, so they can be removed from errors.
TAGS = {"all": "<all>", "any": "<any>", "not": "<not>"}
READING_TAG = "<reading>"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)]
Strength = Annotated[float, Field(ge=0.0, le=LARGEST_VALUE, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]


class Strict(BaseModel):
    """A model without unknown keys, which does not change once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(Strict):
    """A set of labelled features: those whose label fits every key that is given.

    subject, language: is one of the label's subjects or languages. min_precision: the label's precision is
    known and at least this.
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
    """Features of one SAE: by index, by exact label, or by a set of labels. Exactly one of the three.

    sae: its id; may be left out if the server has only one.
    """

    sae: str = ""
    index: Index | None = None
    indices: Annotated[tuple[Index, ...], Field(min_length=1)] | None = None
    label: Text | None = None
    where: Where | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        named = [name for name in ("index", "indices", "label", "where") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"give exactly one of index, indices, label and where, not {' and '.join(named) or 'none'}"
            )
        if self.indices is not None and len(set(self.indices)) < len(self.indices):
            raise ValueError("indices: one stands there twice")
        return self


class DirectionSelector(Strict):
    """A direction at a site: one tensor [d] of a safetensors file under the bundle's `directions/`, or one
    that the operator ships with the server, by its digest; exactly one of the two.

    tensor: its name in the file; may be left out if the file holds only one. site: may be left out if the
    server has only one, and for a direction that is shipped with one.
    """

    file: Annotated[str, StringConstraints(pattern=DIRECTIONS_PATTERN)] | None = None
    digest: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)] | None = None
    tensor: str = ""
    site: str = ""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.file is None) == (self.digest is None):
            raise ValueError("give one of file and digest")
        if self.tensor and self.file is None:
            raise ValueError("tensor: names one of a file, and there is no file")
        return self


class Targets(Strict):
    """What a rule acts on: features, directions, or both; at least one."""

    features: tuple[FeatureSelector, ...] = ()
    directions: tuple[DirectionSelector, ...] = ()

    @model_validator(mode="after")
    def _has_some(self) -> Self:
        if not self.features and not self.directions:
            raise ValueError("name at least one of features and directions")
        return self


class Target(Strict):
    """One feature or one direction; exactly one of the two."""

    feature: FeatureSelector | None = None
    direction: DirectionSelector | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.feature is None) == (self.direction is None):
            raise ValueError("give one of feature and direction")
        return self


class Reading(Target):
    """One watched feature or direction against one threshold.

    above: holds if the value is greater; below: holds if it is less. The value is read from the clean
    activation, before any edit at its site.
    """

    above: Number | None = None
    below: Number | None = None
    unit: Literal[Unit.FEATURE, Unit.MAX_ACTIVATION] = Unit.FEATURE

    @model_validator(mode="after")
    def _has_one_threshold(self) -> Self:
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
    """The tag of an expression, from its key, so that errors are about that kind of expression alone."""
    if isinstance(value, dict):
        return next((tag for key, tag in TAGS.items() if key in value), READING_TAG)
    models = ((All, "all"), (Any_, "any"), (Not, "not"))
    return next((TAGS[key] for kind, key in models if isinstance(value, kind)), READING_TAG)


Expression = Annotated[
    Annotated[All, Tag(TAGS["all"])]
    | Annotated[Any_, Tag(TAGS["any"])]
    | Annotated[Not, Tag(TAGS["not"])]
    | Annotated[Reading, Tag(READING_TAG)],
    Discriminator(_kind),
]


class When(Strict):
    """A condition. sticky: once it has held, it holds for the rest of the answer."""

    if_: Annotated[Expression, Field(alias="if")]
    over: Scope = Scope.TOKEN
    window: Annotated[int, Field(ge=2, le=1024, strict=True)] | None = None
    sticky: Flag = True

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if (self.over is Scope.WINDOW) != (self.window is not None):
            raise ValueError("window: give it with `over: window`, and only there")
        return self


for _model in (All, Any_, Not, When):
    _model.model_rebuild()


class Mode(StrEnum):
    """What is done with a rule that applies: it acts, is recorded without acting, or is only counted."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    SHADOW = "shadow"


class Transparency(StrEnum):
    """What callers who do not administer the policy may learn of it (see `policy.decide.disclosure`).

    LABELS: its rules with their reasons and labels, and why it denies. STEERED: only that there are rules.
    """

    LABELS = "labels"
    STEERED = "steered"


class Told(StrEnum):
    """When text is sent: at once, or only after every condition has judged its tokens."""

    AT_ONCE = "at_once"
    JUDGED = "judged"


class Ban(Targets):
    """Push an active feature down by the strength, then keep it from re-encoding (see steering.rows.ban)."""

    strength: Strength = 0.0
    phase: Phase = Phase.ALL


class Clamp(Targets):
    """Set to a value, everywhere or only where active."""

    value: Number
    unit: Unit = Unit.FEATURE
    if_active: Flag = False
    phase: Phase = Phase.ALL


class Cap(Targets):
    """Keep the value at most at `value`."""

    value: Number
    unit: Unit = Unit.FEATURE
    phase: Phase = Phase.ALL


class Floor(Targets):
    """Keep the value at least at `value`."""

    value: Number
    unit: Unit = Unit.FEATURE
    phase: Phase = Phase.ALL


class Scale(Targets):
    """Multiply by a factor."""

    factor: Number
    phase: Phase = Phase.ALL


class Redirect(Targets):
    """Where active, write something else instead (see steering.rows.redirect).

    to: the one feature or direction that is written, at the site of what is read. factor: how many units of
    it each unit that is read becomes; in max_activation, how many of its maxima the maximum of what is read
    becomes. threshold: nothing happens at or below it; in the same unit. strength: a plain number.
    """

    to: Target
    factor: Number
    strength: Strength = 0.0
    threshold: Strength = 0.0
    unit: Literal[Unit.FEATURE, Unit.MAX_ACTIVATION] = Unit.FEATURE
    phase: Phase = Phase.ALL

    @model_validator(mode="after")
    def _writes_one(self) -> Self:
        if self.to.feature is not None and (self.to.feature.indices or self.to.feature.where):
            raise ValueError("to: a redirect writes one feature, named by index or label")
        return self


class Watch(Targets):
    """Read each feature, and put its largest value over the answer into the audit record."""


class Stop(Strict):
    """End the answer before another token is sent, with finish_reason CONTENT_FILTER."""


class Refuse(Strict):
    """Refuse the request with a message once its prompt is read; only for conditions over the prompt."""

    message: Text


class Record(Strict):
    """Only record that the condition held."""


class Rule(Strict):
    """One rule with exactly one action. With a `when` it acts only while that condition holds.

    reason: shown to callers if the policy's transparency is `labels`. mode: by default the policy's.
    """

    id: Name
    reason: Text | None = None
    mode: Mode | None = None
    when: When | None = None
    ban: Ban | None = None
    clamp: Clamp | None = None
    cap: Cap | None = None
    floor: Floor | None = None
    scale: Scale | None = None
    redirect: Redirect | None = None
    watch: Watch | None = None
    stop: Stop | None = None
    refuse: Refuse | None = None
    record: Record | None = None

    @model_validator(mode="after")
    def _is_one_action(self) -> Self:
        actions = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(actions) != 1:
            raise ValueError(
                f"give exactly one action of {', '.join(ACTIONS)}, not {' and '.join(actions) or 'none'}"
            )
        if self.when is None and actions[0] in ("stop", "refuse", "record"):
            raise ValueError(f"{actions[0]}: needs a `when`")
        if self.when is not None and actions[0] == "watch":
            raise ValueError("watch: takes no `when`")
        if self.refuse is not None and self.when is not None and self.when.over is not Scope.PROMPT:
            raise ValueError("refuse: needs a condition `over: prompt`; later there is an answer to stop")
        return self

    @property
    def action(self) -> str:
        """Which of ACTIONS it is."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)


#: The actions that a rule may have.
ACTIONS = ("ban", "clamp", "cap", "floor", "scale", "redirect", "watch", "stop", "refuse", "record")


class Match(Strict):
    """The requests that a policy concerns: it names their tenant, one of their roles, and their model."""

    tenants: Annotated[tuple[Text, ...], Field(min_length=1)] = (EVERY,)
    roles: Annotated[tuple[Text, ...], Field(min_length=1)] = (EVERY,)
    models: Annotated[tuple[Text, ...], Field(min_length=1)] = (EVERY,)

    @model_validator(mode="after")
    def _has_no_patterns(self) -> Self:
        for name in (*self.tenants, *self.roles, *self.models):
            if EVERY in name and name != EVERY:
                raise ValueError(f"{name!r}: a * stands for every one, alone; there are no patterns")
        return self


class Allowance(Strict):
    """What a request may do: any of these operations on any of these targets in the range, or these uses.

    features, sites: left out means every one. directions: whether the request's own vectors may be used.
    min, max: the range of the value, strength or factor, in `unit`; left out means no bound. A value in
    another unit is converted, without rounding, if the feature has a recorded maximum. A fraction of ‖x‖
    cannot be converted, so only an entry in the same unit allows it. A watch has no value. A redirect is
    allowed only if both what it reads and what it writes are; its strength is at most `max`, as a plain
    number, or 0. uses: words for what a request asks for beyond the ordinary; `max` then bounds n,
    temperature or how many pictures.
    """

    id: Name
    ops: Annotated[tuple[Op, ...], Field(min_length=1)] = ()
    uses: Annotated[tuple[Use, ...], Field(min_length=1)] = ()
    features: tuple[FeatureSelector, ...] | None = None
    directions: Flag = False
    sites: tuple[str, ...] | None = None
    min: Number | None = None
    max: Number | None = None
    unit: Unit = Unit.FEATURE

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if bool(self.ops) == bool(self.uses):
            raise ValueError("give either ops, for edits and watches, or uses")
        if self.uses:
            ranged = {"features", "directions", "sites", "min", "unit"} & self.model_fields_set
            if ranged:
                raise ValueError(f"{min(ranged)}: is for ops; uses have at most a max")
            if self.max is not None and not set(self.uses) <= set(ORDINARY):
                raise ValueError(f"max: bounds {', '.join(ORDINARY)} only; write the other uses apart")
            if self.max is not None and self.max < 1.0:
                raise ValueError("max: up to 1 needs no allowance; give more")
        elif set(self.ops) == {Op.WATCH} and {"min", "max", "unit"} & self.model_fields_set:
            raise ValueError("a watch has no value, so watch alone takes no min, max and unit")
        return self

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        low = -math.inf if self.min is None else self.min
        if low > (math.inf if self.max is None else self.max):
            raise ValueError("min: is above max")
        return self


class Limits(Strict):
    """Bounds on all edits of a request together.

    max_edits: how many there may be. max_relative_norm: the largest ‖Δx‖/‖x‖ that they may cause at a token
    of a site; a larger move is scaled down to it. after_bans: whether edits are allowed at sites behind the
    last ban, where they could write again what is banned.
    """

    max_edits: Count | None = None
    max_relative_norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False, strict=True)] | None = None
    after_bans: Flag = False


class Protection(Targets):
    """Features and directions that no request may touch, and no vector or sum of vectors may come close to.

    max_cosine: how close a request's vectors, or anything in their span, may come to a protected one's
    encoder or decoder row.
    """

    id: Name
    reason: Text | None = None
    max_cosine: Annotated[float, Field(gt=0.0, le=1.0, strict=True)] = 0.5


#: The most tokens that a policy may keep back behind those that have been judged.
MAX_HOLD = 1024


class FirstToken(Strict):
    """What is done at a sequence's first token, where that is the model's own beginning-of-sequence token.

    conditions: whether conditions read it. rows: whether rows move it. It is the same in every request, and
    most features fire on it. If any matching policy says true, it is done.
    """

    conditions: Flag = False
    rows: Flag = False


class Policy(Strict):
    """A policy: who it is, whom it concerns, and its rules.

    serial: rises with every revision; a server takes no lower one. revision: the author's name for it.
    urgent: it also governs requests that were admitted before it, by ending them. told: when text is sent;
    `judged` wins if several policies match. hold: under `judged`, how many tokens after it have been judged
    too before a token is sent; the largest wins.
    """

    apiVersion: Literal["saegis.dev/v1"]
    kind: Literal["Policy"]
    name: Name
    serial: Annotated[int, Field(ge=1, strict=True)]
    revision: Annotated[str, StringConstraints(pattern=REVISION_PATTERN)]
    description: str = ""
    urgent: Flag = False
    mode: Mode = Mode.ENFORCE
    transparency: Transparency = Transparency.LABELS
    told: Told = Told.AT_ONCE
    hold: Annotated[int, Field(ge=0, le=MAX_HOLD, strict=True)] = 0
    first_token: FirstToken = FirstToken()
    match: Match = Match()
    rules: tuple[Rule, ...] = ()
    allow: tuple[Allowance, ...] = ()
    limits: Limits = Limits()
    protect: tuple[Protection, ...] = ()

    @model_validator(mode="after")
    def _has_distinct_ids(self) -> Self:
        ids = (((*place, "id"), id_) for place, id_ in entries(self))
        check_distinct(ids, "two entries have the id '{name}'")
        return self

    @model_validator(mode="after")
    def _holds_what_is_judged(self) -> Self:
        if self.hold and self.told is not Told.JUDGED:
            raise ValueError("hold: give it with `told: judged`, and only there")
        return self

    @property
    def held_back(self) -> int:
        """How many tokens, itself the first, are judged before a token is sent; 0: it is sent at once."""
        return 1 + self.hold if self.told is Told.JUDGED else 0


class Part(Strict):
    """A further file of a bundle, `rules/*.yaml`: more rules, allowances and protections of its policy."""

    apiVersion: Literal["saegis.dev/v1"]
    kind: Literal["PolicyPart"]
    rules: tuple[Rule, ...] = ()
    allow: tuple[Allowance, ...] = ()
    protect: tuple[Protection, ...] = ()

    @model_validator(mode="after")
    def _has_distinct_ids(self) -> Self:
        ids = (((*place, "id"), id_) for place, id_ in entries(self))
        check_distinct(ids, "two entries have the id '{name}'")
        return self


def entries(part: Policy | Part) -> Iterable[tuple[tuple[str, int], str]]:
    """The key and place of every rule, allowance and protection, such as ("rules", 2), with its id."""
    for key in ("rules", "allow", "protect"):
        for place, entry in enumerate(getattr(part, key)):
            yield (key, place), entry.id


def check_distinct(named: Iterable[tuple[tuple[str | int, ...], str]], twice: LiteralString) -> None:
    """Raise PydanticCustomError with the message `twice` and the place of the first repeated name."""
    seen: set[str] = set()
    for place, name in named:
        if name in seen:
            raise PydanticCustomError("twice", twice, {"name": name, "path": place})
        seen.add(name)
