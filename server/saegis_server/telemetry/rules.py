"""The series by rule: what each rule in force did, a bounded number of them whatever policies there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from saegis_server.telemetry.tenants import ALL, OTHER, TenantClasses

#: About how many series there may be by rule; beyond it tenant classes are not told apart, then further rules
#: are OTHER.
ROOM = 250
#: The most series of a rule beside those by tenant class: tokens by phase, conditions, and what it ended.
_OF_A_RULE = 4
MOST_RULES = ROOM // (_OF_A_RULE + 1)
#: The actions that end an answer or refuse a request.
_STOPS, _REFUSES = frozenset(("stop", "refuse", OTHER)), frozenset(("refuse", OTHER))


class RuleName(NamedTuple):
    """A rule as its series name it. mode: enforce, audit or shadow, or candidate for one that is evaluated
    beside the revision in force; action: what it does, empty for what denies and is no rule."""

    policy: str
    rule: str
    mode: str
    action: str = ""


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """What a rule did to one request.

    prompt, answer: at how many tokens it acted; held: whether its condition came to hold; stopped: how many
    answers it ended; refused: whether it refused the prompt.
    """

    prompt: int = 0
    answer: int = 0
    held: bool = False
    stopped: int = 0
    refused: bool = False

    @property
    def touches(self) -> bool:
        """Whether it did anything."""
        return bool(self.prompt or self.answer or self.held or self.stopped or self.refused)


@dataclass(slots=True)
class _Count:
    """What a rule did to all requests. requests: by tenant class; tokens: by phase."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    held: int = 0
    stopped: int = 0
    refused: int = 0


class RuleSeries(Collector):
    """Counters of the rules in force; those of a rule that goes out of force go too. Safe to use from any
    thread.
    """

    def __init__(self, tenants: TenantClasses) -> None:
        self._tenants, self._lock = tenants, Lock()
        self._counts: dict[RuleName, _Count] = {}
        self._conditional: frozenset[RuleName] = frozenset()
        self._denials: Counter[RuleName] = Counter()
        self._collected: tuple[Metric, ...] | None = None

    def show(self, rules: Mapping[RuleName, bool]) -> None:
        """Count for these rules from now on; the value says whether a rule has a condition."""
        named = sorted(rules)[:MOST_RULES]
        if len(rules) > MOST_RULES:
            named.append(_REST)
        policies = {rule.policy for rule in rules} | {""}
        with self._lock:
            self._collected = None
            self._counts = {rule: self._counts.get(rule, _Count()) for rule in named}
            self._conditional = frozenset(rule for rule, conditional in rules.items() if conditional)
            self._denials = Counter(
                {rule: count for rule, count in self._denials.items() if rule.policy in (*policies, OTHER)}
            )

    def count(self, rule: RuleName, effect: RuleEffect, tenant: str) -> None:
        """Count what a rule did to one request; nothing where it is no longer in force."""
        if not effect.touches:
            return
        with self._lock:
            known = self._counts.get(rule) or self._counts.get(_REST)
            if known is None:
                return
            self._collected = None
            known.requests[self._tenants.of(tenant)] += 1
            known.tokens["prompt"] += effect.prompt
            known.tokens["completion"] += effect.answer
            known.held += effect.held
            known.stopped += effect.stopped
            known.refused += effect.refused

    def deny(self, rules: Iterable[RuleName]) -> None:
        """Count that rules, limits, allowances or protections denied a request, or would have."""
        with self._lock:
            self._collected = None
            for rule in rules:
                has_room = rule in self._denials or len(self._denials) < MOST_RULES
                self._denials[rule if has_room else _REST] += 1

    def collect(self) -> Iterator[Metric]:
        """The families, at a scrape; the same ones as long as nothing was counted."""
        # Whoever reads them may be slow, and nobody who counts may wait for that.
        with self._lock:
            if self._collected is None:
                self._collected = tuple(self._families())
            families = self._collected
        yield from families

    def _families(self) -> Iterator[Metric]:
        yield self._requests()
        yield self._family(
            "tokens",
            "Tokens on which a rule acted: it changed the value of a feature, or put out an active one.",
            ("phase",),
            (
                (rule, (phase,), count.tokens[phase])
                for rule, count in self._counts.items()
                for phase in ("prompt", "completion")
                if rule.mode == "enforce" and rule.action not in _QUIET
            ),
        )
        yield self._family(
            "conditions",
            "Requests in which the condition of a rule came to hold.",
            (),
            (
                (rule, (), count.held)
                for rule, count in self._counts.items()
                if rule in self._conditional or rule == _REST
            ),
        )
        yield self._family(
            "answers_stopped",
            "Answers that a rule ended.",
            (),
            (
                (rule, (), count.stopped)
                for rule, count in self._counts.items()
                if rule.mode == "enforce" and rule.action in _STOPS
            ),
        )
        yield self._family(
            "requests_refused",
            "Requests whose prompt a rule refused.",
            (),
            (
                (rule, (), count.refused)
                for rule, count in self._counts.items()
                if rule.mode == "enforce" and rule.action in _REFUSES
            ),
        )
        yield self._denied()

    def _requests(self) -> Metric:
        apart = len(self._counts) * (len(self._tenants.names) + _OF_A_RULE) <= ROOM
        classes = self._tenants.names if apart else (ALL,)
        return self._family(
            "requests",
            "Requests that a rule touched: it acted, its condition held, or it ended or refused them.",
            ("tenant_class",),
            (
                (rule, (name,), count.requests.total() if name == ALL else count.requests[name])
                for rule, count in self._counts.items()
                for name in classes
            ),
        )

    def _denied(self) -> Metric:
        family = CounterMetricFamily(
            "saegis_rule_denials",
            "Requests that a rule, a limit or a missing allowance denied, or would have in another mode.",
            labels=("policy", "rule", "mode"),
        )
        for rule, count in sorted(self._denials.items()):
            family.add_metric(rule[:3], count)
        return family

    @staticmethod
    def _family(
        name: str,
        description: str,
        labels: tuple[str, ...],
        samples: Iterable[tuple[RuleName, tuple[str, ...], int]],
    ) -> Metric:
        family = CounterMetricFamily(f"saegis_rule_{name}", description, labels=(*RuleName._fields, *labels))
        for rule, further, value in samples:
            family.add_metric((*rule, *further), value)
        return family


#: What stands for the rules beyond MOST_RULES.
_REST = RuleName(OTHER, OTHER, "enforce", OTHER)
#: The actions that change no activation.
_QUIET = frozenset(("watch", "stop", "refuse", "record"))
