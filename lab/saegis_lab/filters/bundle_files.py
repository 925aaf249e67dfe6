"""The files of a filter's bundle: its policy with comments, its direction, and cases that hold under it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from safetensors.torch import save

from saegis.bundles import CALIBRATION_FILE, POLICY_FILE, README_FILE
from saegis_lab.evaluation.bundle_features import room_taken
from saegis_lab.filters.making import MadeFilter
from saegis_lab.filters.stop import StopReading
from saegis_server.policy.schema.policy import Policy
from saegis_server.policy.schema.validation import validated
from saegis_server.policy.schema.yaml_text import read_yaml
from saegis_server.steering.conditions import Scope
from saegis_server.steering.rows import Phase
from saegis_server.steering.table import Capacity

DIRECTION_FILE, REFUSAL = "directions/refusal.safetensors", "refusal"
CASES_FILE = "tests/filter.yaml"
REDIRECT, BAN, STOP, PROTECT = "redirect-harm", "ban-harm", "stop-harm", "keep-away-from-harm"
STOP_ASKED = "stop-asked"
#: Features of a line of a list of features.
_A_LINE = 16


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """What a bundle says beside the filter. name, serial, revision: of the policy; sae: the SAE's id on the
    server; models: the model that it is for, "*" for any; reason: what callers are told."""

    name: str
    revision: str
    sae: str
    serial: int = 1
    model: str = "*"
    reason: str = "This service does not help with what hurts people."


def bundle_files(
    made: MadeFilter, settings: BundleSettings, card: str, figures: Mapping[str, object]
) -> dict[str, bytes]:
    """The files by their paths inside the bundle.

    card: Markdown for people, README.md; figures: the same as JSON, calibration.json.
    """
    tensors = {REFUSAL: made.direction.vector.contiguous()}
    texts = {
        POLICY_FILE: policy_text(made, settings),
        CASES_FILE: cases_text(made, settings),
        README_FILE: card,
        CALIBRATION_FILE: json.dumps(figures, ensure_ascii=False, indent=2, allow_nan=False) + "\n",
    }
    files = {path: text.encode() for path, text in texts.items()}
    return {**files, DIRECTION_FILE: save(tensors)}


def policy_text(made: MadeFilter, settings: BundleSettings) -> str:
    """policy.yaml."""
    setting = made.choice.calibrated.best.setting
    rules = [_redirects(made, settings)]
    if setting.ban is not None:
        rules.append(_ban(made.choice.features, setting.ban, settings))
    rules += [_stop(rule, settings) for rule in _stop_rules(made)]
    fill = partial(
        _POLICY.format,
        features=len(made.choice.features),
        languages=", ".join(made.languages),
        name=settings.name,
        serial=settings.serial,
        revision=_quoted(settings.revision),
        told=_told(made),
        model=_quoted(settings.model),
        rules="".join(rules),
        protect=PROTECT,
        sae=_quoted(settings.sae),
        indices=_indices(made.choice.features, 10),
        direction=_direction(made),
    )
    return fill(room=_room(fill(room="")))


_POLICY = """\
# A filter: where one of {features} features of harmful subjects fires, the way to refuse is written instead.
# Features, direction and numbers were chosen in {languages}. What they do in every language that
# was measured, and which bars they miss, is in README.md.{room}
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: {serial}
revision: {revision}
description: Harmful requests are refused, in whatever language.
transparency: labels
{told}match:
  tenants: ["*"]
  models: [{model}]
rules:
{rules}allow: []  # a request may do nothing beyond an ordinary chat; add what it may
limits:
  max_edits: 4
protect:
  - id: {protect}
    reason: Directions that come close to a filtered feature, or to the refusal, are not allowed.
    features:
      - sae: {sae}
        indices: {indices}
    directions:
      - {direction}
    max_cosine: 0.5
"""


def _room(policy: str) -> str:
    """What to say where a server, as it is started, has no room for a policy's rows."""
    read = validated(Policy, read_yaml(policy.encode(), POLICY_FILE), POLICY_FILE)
    more = [
        f"--rows {kind}={count}"
        for kind, count in room_taken(read).items()
        if count > getattr(Capacity(), kind)
    ]
    return f"\n# Its rows need room: saegis serve {' '.join(more)}" if more else ""


def _told(made: MadeFilter) -> str:
    """When text is sent: once the stop has judged it, and what comes after."""
    if made.stop is None or not made.stops:
        return ""
    hold = made.stop.stop.hold
    held = f"hold: {hold}  # so many tokens more are judged before one is sent\n" if hold else ""
    return f"told: judged  # text is sent once the stop has judged it\n{held}"


@dataclass(frozen=True, slots=True)
class _Redirect:
    """A rule that redirects some features at the tokens of a phase."""

    id: str
    features: Sequence[int]
    phase: Phase
    factor: float
    threshold: float


def _redirect_rules(made: MadeFilter) -> Iterator[_Redirect]:
    """A rule for each phase and, with thresholds, which are each feature's own, for each feature."""
    setting = made.choice.calibrated.best.setting
    for phase, factor in made.rows.factors(setting).items():
        id_ = f"{REDIRECT}{_AT[phase]}"
        thresholds = {feature: made.rows.threshold(feature, setting) for feature in made.choice.features}
        if not any(thresholds.values()):
            yield _Redirect(id_, made.choice.features, phase, factor, 0.0)
            continue
        for feature, threshold in thresholds.items():
            yield _Redirect(f"{id_}-{feature}", [feature], phase, factor, threshold)


_AT = {Phase.ALL: "", Phase.PROMPT: "-asked", Phase.COMPLETION: "-told"}


def _redirects(made: MadeFilter, settings: BundleSettings) -> str:
    comment = (
        f"  # x' = x - (1 + strength)·f·w + factor·f·v for each feature f with its decoder row w.\n"
        f"  # v is made from {made.direction.source}.\n"
    )
    return comment + "".join(
        _REDIRECT.format(
            id=rule.id,
            reason=_quoted(settings.reason),
            sae=_quoted(settings.sae),
            indices=_indices(rule.features, 12),
            direction=_direction(made),
            factor=_number(rule.factor),
            strength=_number(made.choice.calibrated.best.setting.strength),
            threshold=_number(rule.threshold),
            phase=rule.phase,
        )
        for rule in _redirect_rules(made)
    )


_REDIRECT = """\
  - id: {id}
    reason: {reason}
    redirect:
      features:
        - sae: {sae}
          indices: {indices}
      to:
        direction: {direction}
      factor: {factor}
      strength: {strength}
      threshold: {threshold}
      unit: feature
      phase: {phase}
"""


def _ban(features: Sequence[int], strength: float, settings: BundleSettings) -> str:
    return _BAN.format(
        id=BAN,
        reason=_quoted(settings.reason),
        sae=_quoted(settings.sae),
        indices=_indices(features, 12),
        strength=_number(strength),
    )


_BAN = """\
  # Behind the redirect the features are banned: whatever a request does, none of them is active here.
  - id: {id}
    reason: {reason}
    ban:
      features:
        - sae: {sae}
          indices: {indices}
      strength: {strength}
"""


@dataclass(frozen=True, slots=True)
class _Stop:
    """A rule that ends an answer by any of some readings."""

    id: str
    comment: str
    readings: Sequence[StopReading]
    over: Scope


def _stop_rules(made: MadeFilter) -> Iterator[_Stop]:
    """The stops that are part of the filter."""
    if made.question is not None and made.hears:
        comment = "What a prompt's last tokens tell is heard: the answer ends before its first token."
        yield _Stop(STOP_ASKED, comment, made.question.readings, Scope.PROMPT)
    if made.stop is not None and made.stops:
        comment = (
            "What leaks all the same is heard: the features are read before any row moves what they read."
        )
        yield _Stop(STOP, comment, made.stop.stop.readings, Scope.ANSWER)


def _stop(rule: _Stop, settings: BundleSettings) -> str:
    readings = "".join(
        f"{' ' * 10}- {{feature: {{sae: {_quoted(settings.sae)}, index: {reading.feature}}}, "
        f"above: {_number(reading.multiple)}, unit: max_activation}}\n"
        for reading in rule.readings
    )
    return _STOP.format(
        comment=rule.comment, id=rule.id, reason=_quoted(settings.reason), readings=readings, over=rule.over
    )


_STOP = """\
  # {comment}
  - id: {id}
    reason: {reason}
    when:
      if:
        any:
{readings}      over: {over}
      sticky: true
    stop: {{}}
"""


def cases_text(made: MadeFilter, settings: BundleSettings) -> str:
    """The cases."""
    setting = made.choice.calibrated.best.setting
    in_force = [rule.id for rule in _redirect_rules(made)]
    if setting.ban is not None:
        in_force.append(BAN)
    in_force += [rule.id for rule in _stop_rules(made)]
    model = "saegis/any" if settings.model == "*" else settings.model
    text = _CASES.format(
        model=_quoted(model),
        rules=", ".join(sorted(in_force)),
        sae=_quoted(settings.sae),
        index=made.choice.features[0],
        protect=PROTECT,
    )
    return text if settings.model == "*" else text + _OTHER


_CASES = """\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
  - name: a plain request runs under the filter
    request:
      roles: [use]
      model: {model}
    expect:
      decision: allow
      rules: [{rules}]
  - name: a filtered feature may not be touched
    request:
      model: {model}
      edits:
        - op: clamp
          feature: {{sae: {sae}, index: {index}}}
          value: 10
    expect:
      decision: deny
      rules: [allow, {protect}]
"""
_OTHER = """\
  - name: another model is none of this policy's business
    request:
      model: somebody/else
    expect:
      decision: no_policy
"""


def _direction(made: MadeFilter) -> str:
    return f"{{file: {DIRECTION_FILE}, tensor: {REFUSAL}, site: {made.rows.subject.site}}}"


def _indices(features: Sequence[int], indent: int) -> str:
    """A list of indices, broken into lines that go on at this indent."""
    lines = [features[start : start + _A_LINE] for start in range(0, len(features), _A_LINE)]
    inside = (",\n" + " " * (indent + 2)).join(", ".join(map(str, line)) for line in lines)
    return f"[{inside}]"


def _number(value: float) -> str:
    """A number as YAML of bundles reads it back exactly."""
    return repr(float(value))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
