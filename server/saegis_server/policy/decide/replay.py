"""Replay: what a policy would have decided on the requests that an audit log tells of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path

from pydantic import ValidationError

from saegis_server.audit.chain import Line
from saegis_server.audit.records import DecisionRecord, PlainJson
from saegis_server.audit.verify import files_of, lines
from saegis_server.policy.decide.case_request import facts_of
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.decide.selectors import SelectionError
from saegis_server.policy.schema.cases import CaseEdit, CaseRequest, CaseUse

Record = Mapping[str, PlainJson]

#: What a replay reads of a record; one of which something is masked cannot be replayed.
_NEEDED = ("tenant", "roles", "model", "policy_revision", "allowed", "denials", "edits", "uses")
_NO_POLICY = ("", "match")


class Outcome(StrEnum):
    """What becomes of a recorded decision."""

    NEWLY_DENIED = "newly denied"
    NEWLY_ALLOWED = "newly allowed"
    STILL_ALLOWED = "still allowed"
    STILL_DENIED = "still denied"
    NOT_REPLAYED = "not replayed"


class NotReplayableError(ValueError):
    """A record that does not hold all that the decision rested on; `str` says what is missing."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded decision, and what would have come of it.

    denials: why it would be denied or, of one newly allowed, why it was. reason: why it is not replayed.
    """

    decision_id: str
    time: str
    tenant: str
    outcome: Outcome
    denials: tuple[Denial, ...] = ()
    reason: str = ""


@dataclass
class Replay:
    """What comes of all recorded decisions.

    counts: how many have each outcome. rules: by outcome "policy/rule" with the decisions that it denies or,
    of those newly allowed, that it denied. reasons: why decisions are not replayed. examples: the first few
    of each outcome. unreadable: lines of the log that are no records.
    """

    counts: Counter[Outcome] = field(default_factory=Counter)
    rules: dict[Outcome, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[Outcome, list[Replayed]] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, one: Replayed, most_examples: int) -> None:
        """Count one decision."""
        self.counts[one.outcome] += 1
        if one.denials:
            self.rules.setdefault(one.outcome, Counter()).update(set(map(rule_name, one.denials)))
        if one.reason:
            self.reasons[one.reason] += 1
        kept = self.examples.setdefault(one.outcome, [])
        if len(kept) < most_examples:
            kept.append(one)


def replay(
    place: Path, candidate: CompiledPolicy, replaced: Sequence[str] = (), most_examples: int = 5
) -> Replay:
    """What `candidate` would have decided in place of the policies of the names `replaced` and of its own.

    What further policies denied stays denied. Conditions are not replayed, since a log holds no readings.
    Raises AuditError where there is no log, and OSError.
    """
    found = Replay()
    names = frozenset((candidate.name, *replaced))
    alone = PolicySet((candidate,))
    for line in chain.from_iterable(map(lines, files_of(place))):
        if not isinstance(line, Line):
            found.unreadable += 1
        elif line.record["kind"] == DecisionRecord.kind:
            found.add(_replayed(line.record, candidate, alone, names), most_examples)
    return found


def _replayed(record: Record, candidate: CompiledPolicy, alone: PolicySet, names: frozenset[str]) -> Replayed:
    decision_id, time, tenant = (str(record.get(name, "")) for name in ("decision_id", "time", "tenant"))

    def told(outcome: Outcome, denials: tuple[Denial, ...] = (), reason: str = "") -> Replayed:
        return Replayed(decision_id, time, tenant, outcome, denials, reason)

    try:
        _check_whole(record)
        before = _denials(record)
        standing = _standing(record, before, names)
        after = _after(alone.decide(_facts(record, candidate)), standing, _others(record, names))
    except NotReplayableError as error:
        return told(Outcome.NOT_REPLAYED, reason=str(error))
    if record["allowed"] is True:
        return told(Outcome.NEWLY_DENIED if after else Outcome.STILL_ALLOWED, after)
    return told(Outcome.STILL_DENIED if after else Outcome.NEWLY_ALLOWED, after or before)


def _check_whole(record: Record) -> None:
    masked = record.get("masked")
    for pointer in masked if isinstance(masked, list) else ():
        field = str(pointer).split("/")[1]
        if field in _NEEDED:
            raise NotReplayableError(f"{field} is masked in the log")
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise NotReplayableError(f"the record lacks {', '.join(missing)}")


def _standing(record: Record, before: Sequence[Denial], names: frozenset[str]) -> tuple[Denial, ...]:
    """The denials of other policies, which stand whatever the candidate says."""
    for denial in before:
        if not denial.policy and denial.rule != "match" and _others(record, names):
            raise NotReplayableError("denied by several policies together")
    return tuple(denial for denial in before if denial.policy and denial.policy not in names)


def _after(decision: Decision, standing: Sequence[Denial], others: Sequence[str]) -> tuple[Denial, ...]:
    """Why a request would be denied; nothing where it would not."""
    denials = decision.denials
    if others and any((denial.policy, denial.rule) == _NO_POLICY for denial in denials):
        # It is none of the candidate's business, but other policies allow it.
        denials = ()
    return (*standing, *denials)


def _others(record: Record, names: frozenset[str]) -> list[str]:
    """The further policies under which it was decided."""
    revisions = filter(None, str(record["policy_revision"]).split(","))
    return [name for name in (each.partition("@")[0] for each in revisions) if name not in names]


def _denials(record: Record) -> tuple[Denial, ...]:
    found = []
    for each in _maps(record["denials"], "denials"):
        policy, rule, message, field = (
            str(each.get(name, "")) for name in ("policy", "rule", "message", "field")
        )
        found.append(Denial(policy, rule, message, field))
    return tuple(found)


def _facts(record: Record, candidate: CompiledPolicy) -> RequestFacts:
    edits = list(_edits(_maps(record["edits"], "edits")))
    uses = list(_uses(_maps(record["uses"], "uses")))
    roles = record["roles"]
    if not isinstance(roles, list):
        raise NotReplayableError("its roles are no list")
    request = CaseRequest(
        tenant=str(record["tenant"]), roles=tuple(map(str, roles)), model=str(record["model"])
    )
    try:
        # Cases are made of the same edits, so that they are judged in the same way.
        return facts_of(request.model_copy(update={"edits": tuple(edits), "uses": tuple(uses)}), candidate)
    except SelectionError as error:
        raise NotReplayableError("; ".join(problem.message for problem in error.problems)) from error


def _edits(recorded: Iterable[Record]) -> Iterator[CaseEdit]:
    for each in recorded:
        if "index" not in each:
            raise NotReplayableError("an edit lacks its index")
        if each["index"] is None:
            raise NotReplayableError("an edit is of a direction, which a log does not hold")
        known = {name: each[name] for name in ("op", "site", "value", "unit", "phase") if name in each}
        feature = {"sae": each.get("sae") or "", "index": each["index"]}
        try:
            yield CaseEdit.model_validate(known | {"feature": feature})
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise NotReplayableError(f"an edit is not as it should be: {fields}") from error


def _uses(recorded: Iterable[Record]) -> Iterator[CaseUse]:
    for each in recorded:
        try:
            yield CaseUse.model_validate({"word": each.get("use"), "value": each.get("value")})
        except ValidationError as error:
            raise NotReplayableError("a use is not as it should be") from error


def _maps(value: PlainJson, name: str) -> list[dict[str, PlainJson]]:
    if not isinstance(value, list):
        raise NotReplayableError(f"its {name} are no list")
    maps = [each for each in value if isinstance(each, dict)]
    if len(maps) < len(value):
        raise NotReplayableError(f"its {name} are no maps")
    return maps


def rule_name(denial: Denial) -> str:
    """ "policy/rule", or the rule alone where no policy denies."""
    return f"{denial.policy}/{denial.rule}" if denial.policy else denial.rule
