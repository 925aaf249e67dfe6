"""Replay: what a policy would have decided on the requests of an audit log."""

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

#: The fields of a record that a replay needs; where one of them is masked, there is no replay.
_NEEDED = ("tenant", "roles", "model", "policy_revision", "allowed", "denials", "edits", "uses")
#: The fields of a recorded edit that are those of a case.
_OF_AN_EDIT = ("op", "site", "value", "unit", "phase", "strength", "threshold")
_NO_POLICY = ("", "match")


class Outcome(StrEnum):
    """What becomes of a recorded decision."""

    NEWLY_DENIED = "newly denied"
    NEWLY_ALLOWED = "newly allowed"
    STILL_ALLOWED = "still allowed"
    STILL_DENIED = "still denied"
    NOT_REPLAYED = "not replayed"


class NotReplayableError(ValueError):
    """A record that lacks something the decision rested on; `str` says what."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded decision, and what would have come of it.

    denials: why it would be denied; if newly allowed, why it was denied. reason: why it is not replayed.
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

    counts: how many have each outcome. rules: by outcome, how many decisions each "policy/rule" denies or, if
    newly allowed, denied. reasons: how often each reason kept a decision from being replayed. examples: the
    first few of each outcome. unreadable: how many lines of the log are no records.
    """

    counts: Counter[Outcome] = field(default_factory=Counter)
    rules: dict[Outcome, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[Outcome, list[Replayed]] = field(default_factory=dict)
    unreadable: int = 0

    def add(self, replayed: Replayed, most_examples: int) -> None:
        """Count one decision."""
        self.counts[replayed.outcome] += 1
        if replayed.denials:
            self.rules.setdefault(replayed.outcome, Counter()).update(set(map(rule_name, replayed.denials)))
        if replayed.reason:
            self.reasons[replayed.reason] += 1
        examples = self.examples.setdefault(replayed.outcome, [])
        if len(examples) < most_examples:
            examples.append(replayed)


def replay(
    place: Path, candidate: CompiledPolicy, replaced: Sequence[str] = (), most_examples: int = 5
) -> Replay:
    """What `candidate` would have decided in place of the policy of its own name and of those in `replaced`.

    What other policies denied stays denied. Conditions are not replayed, since a log holds no readings.
    Raises AuditError where there is no log, and OSError.
    """
    result = Replay()
    names = frozenset((candidate.name, *replaced))
    alone = PolicySet((candidate,))
    for line in chain.from_iterable(map(lines, files_of(place))):
        if not isinstance(line, Line):
            result.unreadable += 1
        elif line.record["kind"] == DecisionRecord.kind:
            result.add(_replayed(line.record, candidate, alone, names), most_examples)
    return result


def _replayed(record: Record, candidate: CompiledPolicy, alone: PolicySet, names: frozenset[str]) -> Replayed:
    decision_id, time, tenant = (str(record.get(name, "")) for name in ("decision_id", "time", "tenant"))

    def replayed(outcome: Outcome, denials: tuple[Denial, ...] = (), reason: str = "") -> Replayed:
        return Replayed(decision_id, time, tenant, outcome, denials, reason)

    try:
        _check_whole(record)
        before = _denials(record)
        standing = _standing(record, before, names)
        after = _after(alone.decide(_facts(record, candidate)), standing, _others(record, names))
    except NotReplayableError as error:
        return replayed(Outcome.NOT_REPLAYED, reason=str(error))
    if record["allowed"] is True:
        return replayed(Outcome.NEWLY_DENIED if after else Outcome.STILL_ALLOWED, after)
    return replayed(Outcome.STILL_DENIED if after else Outcome.NEWLY_ALLOWED, after or before)


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
    """The denials of other policies, which stand whatever the candidate decides."""
    for denial in before:
        if not denial.policy and denial.rule != "match" and _others(record, names):
            raise NotReplayableError("denied by several policies together")
    return tuple(denial for denial in before if denial.policy and denial.policy not in names)


def _after(decision: Decision, standing: Sequence[Denial], others: Sequence[str]) -> tuple[Denial, ...]:
    """Why a request would be denied; empty if it would not be."""
    denials = decision.denials
    if others and any((denial.policy, denial.rule) == _NO_POLICY for denial in denials):
        # The candidate does not concern it, but other policies do and allow it.
        denials = ()
    return (*standing, *denials)


def _others(record: Record, names: frozenset[str]) -> list[str]:
    """The other policies under which it was decided."""
    revisions = filter(None, str(record["policy_revision"]).split(","))
    return [name for name in (revision.partition("@")[0] for revision in revisions) if name not in names]


def _denials(record: Record) -> tuple[Denial, ...]:
    denials = []
    for entry in _maps(record["denials"], "denials"):
        policy, rule, message, field = (
            str(entry.get(name, "")) for name in ("policy", "rule", "message", "field")
        )
        denials.append(Denial(policy, rule, message, field))
    return tuple(denials)


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
        # Cases have the same kind of edits, so a record is judged as a case is.
        return facts_of(request.model_copy(update={"edits": tuple(edits), "uses": tuple(uses)}), candidate)
    except SelectionError as error:
        raise NotReplayableError("; ".join(problem.message for problem in error.problems)) from error


def _edits(recorded: Iterable[Record]) -> Iterator[CaseEdit]:
    for edit in recorded:
        if "index" not in edit:
            raise NotReplayableError("an edit lacks its index")
        if edit["index"] is None or ("to" in edit and edit["to"] is None):
            raise NotReplayableError("an edit is of a direction, which a log does not hold")
        known = {name: edit[name] for name in _OF_AN_EDIT if name in edit}
        feature = {"sae": edit.get("sae") or "", "index": edit["index"]}
        to = {"to": {"feature": edit["to"]}} if "to" in edit else {}
        try:
            yield CaseEdit.model_validate(known | {"feature": feature} | to)
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise NotReplayableError(f"an edit is not as it should be: {fields}") from error


def _uses(recorded: Iterable[Record]) -> Iterator[CaseUse]:
    for use in recorded:
        try:
            yield CaseUse.model_validate({"word": use.get("use"), "value": use.get("value")})
        except ValidationError as error:
            raise NotReplayableError("a use is not as it should be") from error


def _maps(value: PlainJson, name: str) -> list[dict[str, PlainJson]]:
    if not isinstance(value, list):
        raise NotReplayableError(f"its {name} are no list")
    maps = [entry for entry in value if isinstance(entry, dict)]
    if len(maps) < len(value):
        raise NotReplayableError(f"its {name} are no maps")
    return maps


def rule_name(denial: Denial) -> str:
    """ "policy/rule", or the rule alone where no policy denies."""
    return f"{denial.policy}/{denial.rule}" if denial.policy else denial.rule
