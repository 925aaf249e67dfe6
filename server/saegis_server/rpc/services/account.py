"""The account of a request: what each rule and each of its own edits did to it, by feature and by phase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from saegis_server.audit.records import Fields
from saegis_server.engine.api import RequestFinished
from saegis_server.engine.counts import Acted, Firing, RowGroup
from saegis_server.engine.receipts import ConditionReceipt
from saegis_server.policy.decide.decision import AppliedRule
from saegis_server.policy.schema.policy import Mode
from saegis_server.rpc.auth.attribution import rule_name
from saegis_server.sae.catalog import FoundFeature
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site, forward_order

if TYPE_CHECKING:
    from saegis_server.rpc.services.run import Governed

#: Where a probe is, and its key.
Place = tuple[Site, str]


class Target(NamedTuple):
    """A feature or a direction at its site. key: of its probe; feature: None for a direction."""

    site: Site
    key: str
    feature: FoundFeature | None = None

    @property
    def direction(self) -> str:
        """The digest of a direction; empty for a feature."""
        kind, _, digest = self.key.partition(":")
        return digest if kind == "direction" else ""

    @property
    def order(self) -> tuple[tuple[int, int], int, str]:
        """What sorts targets: by site in the order of the forward pass, features by their index."""
        return forward_order(self.site), -1 if self.feature is None else self.feature.index, self.key


@dataclass(frozen=True, slots=True)
class TargetAccount:
    """At how many tokens something was the case with a target; None where that was not counted.

    largest: of what a condition reads, the largest value that it had, None if it had none.
    """

    target: Target
    tokens: Acted | None
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class RuleAccount:
    """What a rule did.

    acted: at how many tokens it acted on any of its targets, and `targets` on each; None and nothing for what
    changes no activation. condition: what came of its condition. readings: each feature or direction that
    this reads, and at how many tokens it was active.
    """

    rule: AppliedRule
    acted: Acted | None = None
    targets: tuple[TargetAccount, ...] = ()
    condition: ConditionReceipt | None = None
    readings: tuple[TargetAccount, ...] = ()

    @property
    def held(self) -> Acted | None:
        """At how many tokens its condition held: the end of the prompt, once however many completions there
        are, and tokens of these. None without a condition."""
        if (condition := self.condition) is None:
            return None
        at_prompts = condition.at_prompts
        return Acted(min(at_prompts, 1), condition.held_tokens - at_prompts)

    @property
    def did_anything(self) -> bool:
        """Whether it acted, or its condition held; also where it was not counted whether it acted."""
        uncounted = self.acted is None and bool(self.targets)
        return uncounted or any(tokens is not None and any(tokens) for tokens in (self.acted, self.held))


@dataclass(frozen=True, slots=True)
class EditAccount:
    """What an own edit of the request did. place: its number among the request's edits."""

    place: int
    edit: RequestEdit
    on: TargetAccount


@dataclass(frozen=True, slots=True)
class Account:
    """What was done to a request: by the rules of its decision and by its own edits, in their order."""

    rules: tuple[RuleAccount, ...] = ()
    edits: tuple[EditAccount, ...] = ()


def account_of(governed: Governed, done: RequestFinished) -> Account:
    """The account of a request that the engine had, from what it counted."""
    accounts = _Accounts(governed, done)
    return Account(
        tuple(accounts.of_rule(rule) for rule in governed.decision.rules), tuple(accounts.of_edits())
    )


class _Accounts:
    """What the engine counted in one request, by what it was counted of."""

    def __init__(self, governed: Governed, done: RequestFinished) -> None:
        self._governed, self._receipt = governed, done.receipt
        self._acted: Mapping[RowGroup, Acted] = governed.acted(done.receipt)
        watch_set = governed.watch_set
        self._firing: Mapping[Place, Firing] = (
            {} if watch_set is None else watch_set.throughout(governed.watching, done.firing)
        )
        sites = governed.program.sites.items()
        self._places: list[Place] = [(site, probe.key) for site, rows in sites for probe in rows.guards]

    def of_rule(self, rule: AppliedRule) -> RuleAccount:
        decision, owner = self._governed.decision, (rule.policy, rule.rule)
        by_name = {condition.name: condition for condition in self._receipt.conditions}
        readings = tuple(_sorted(self._readings(rule)))
        if rule.mode is not Mode.ENFORCE or owner not in decision.target_rows:
            return RuleAccount(rule, condition=by_name.get(rule.name), readings=readings)
        targets = (
            TargetAccount(self._target(place), self._counted(rows, rule.phase))
            for place, rows in decision.target_rows[owner].items()
        )
        acted = self._counted(decision.rule_rows[owner], rule.phase)
        return RuleAccount(rule, acted, tuple(_sorted(targets)), by_name.get(rule.name), readings)

    def of_edits(self) -> Iterator[EditAccount]:
        governed = self._governed
        for place, (edit, rows) in enumerate(zip(governed.edits, governed.edit_rows, strict=True)):
            target = Target(edit.site, edit.edit.probe.key, edit.feature)
            yield EditAccount(place, edit, TargetAccount(target, self._counted(rows, edit.edit.phase)))

    def _counted(self, rows: RowGroup, phase: Phase) -> Acted | None:
        """What these rows did at tokens of a phase, None if that was not counted. Rules and edits of one
        target have their row in common, and may be of different phases."""
        counted = self._acted.get(rows)
        return None if counted is None else counted.within(phase)

    def _readings(self, rule: AppliedRule) -> Iterator[TargetAccount]:
        peaks = self._receipt.guard_peaks
        for guarded in self._governed.guard.conditions:
            if guarded.name != rule.name:
                continue
            for number in sorted(guarded.condition.readings):
                place = self._places[number]
                fired = self._firing.get(place)
                tokens = None if fired is None else Acted(*(phase.tokens for phase in fired))
                peak = peaks[number] if number < len(peaks) else -math.inf
                yield TargetAccount(self._target(place), tokens, peak if math.isfinite(peak) else None)

    def _target(self, place: Place) -> Target:
        watch_set = self._governed.watch_set
        return Target(*place, None if watch_set is None else watch_set.feature(*place))


def _sorted(accounts: Iterable[TargetAccount]) -> list[TargetAccount]:
    return sorted(accounts, key=lambda account: account.target.order)


def rule_recorded(account: RuleAccount) -> Fields:
    """What the record of an answer holds of a rule."""
    stopped = 0 if account.condition is None else account.condition.stopped
    return {
        "policy": account.rule.policy,
        "rule": account.rule.rule,
        "mode": rule_name(account.rule).mode,
        "acted": _tokens(account.acted),
        "held": _tokens(account.held),
        "stopped": stopped,
        "targets": [_target_recorded(each) for each in account.targets],
        "readings": [{**_target_recorded(each), "largest": each.largest} for each in account.readings],
    }


def edit_recorded(account: EditAccount) -> Fields:
    """What the record of an answer holds of one of the request's own edits."""
    return {"path": account.edit.path, "op": account.edit.op.value, **_target_recorded(account.on)}


def _target_recorded(account: TargetAccount) -> Fields:
    target, feature = account.target, account.target.feature
    return {
        "site": str(target.site),
        "sae": None if feature is None else feature.loaded.id,
        "index": None if feature is None else feature.index,
        "direction": target.direction or None,
        "tokens": _tokens(account.tokens),
    }


def _tokens(tokens: Acted | None) -> Fields | None:
    return None if tokens is None else {"prompt": tokens.prompt, "completion": tokens.answer}
