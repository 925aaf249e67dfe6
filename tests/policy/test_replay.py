"""Replaying an audit log: what a candidate would have decided on what was decided."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.audit import AuditError
from saegis_server.audit.files import ACTIVE
from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import DecisionRecord
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.decide.replay import Outcome, Replay, replay
from saegis_server.rpc.auth.governor import edits_recorded
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import Phase
from tests.audit.logs import settings as log_settings
from tests.policy.policies import along, ask, edit, policy, redirect
from tests.rpc import tiny

OLD = """
rules: [{id: no-poison, ban: {features: [{sae: first, index: 7}]}}]
allow: [{id: style, ops: [clamp, scale, ban, redirect], features: [{sae: first, indices: [3, 4]}], max: 4}]
"""
WIDER = OLD.replace("indices: [3, 4]", "indices: [3, 4, 5]")
NARROWER = OLD.replace("indices: [3, 4]", "indices: [3]")
FREE = "allow: [{id: all, ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, redirect]}]\n"
OTHER = FREE + "rules: [{id: no-five, ban: {features: [{sae: first, index: 5}]}}]\n"


def recorded(facts: RequestFacts, decision: Decision, **changed: Any) -> DecisionRecord:
    """The record of a decision, as the governor writes it."""
    known: dict[str, Any] = {
        "decision_id": "0" * 32,
        "request_id": "r",
        "principal": "alice",
        "tenant": facts.tenant,
        "roles": tuple(sorted(facts.roles)),
        "method": "Generate",
        "model": facts.model,
        "policy_revision": decision.policy_revision,
        "allowed": decision.allowed,
        "denials": tuple(asdict(each) for each in decision.denials),
        "edits": edits_recorded(facts.edits),
    }
    return DecisionRecord(**(known | changed))


def replayed(
    records: Iterable[DecisionRecord], candidate: CompiledPolicy, folder: Path, **logged: Any
) -> Replay:
    """What becomes of records that a log really wrote."""
    log = AuditLog(log_settings(folder, **logged))
    for each in records:
        log.append(each).result()
    log.close()
    return replay(folder, candidate, ("p",))


def under(text: str, *edits: RequestEdit, **asked: Any) -> DecisionRecord:
    """A decision of the policy `p`."""
    facts = ask(*edits, **asked)
    return recorded(facts, PolicySet((policy(text),)).decide(facts))


def outcomes(found: Replay) -> dict[str, int]:
    return {outcome.value: count for outcome, count in found.counts.items()}


def test_decisions_are_sorted_by_what_becomes_of_them(tmp_path: Path) -> None:
    requests = [(), (edit(3),), (edit(4),), (edit(5),), (edit(5), edit(4, place=1)), (edit(7),)]
    found = replayed([under(OLD, *each) for each in requests], policy(NARROWER), tmp_path / "narrower")
    assert outcomes(found) == {"still allowed": 2, "newly denied": 1, "still denied": 3}
    assert found.rules[Outcome.NEWLY_DENIED] == {"p/allow": 1}
    assert found.rules[Outcome.STILL_DENIED] == {"p/allow": 3, "p/no-poison": 1}
    (example,) = found.examples[Outcome.NEWLY_DENIED]
    assert (example.decision_id, example.tenant, example.time[:2]) == ("0" * 32, "acme", "20")
    assert [denial.field for denial in example.denials] == ["steering.edits[0]"]
    wider = replayed([under(OLD, *each) for each in requests], policy(WIDER), tmp_path / "wider")
    assert outcomes(wider) == {"still allowed": 3, "newly allowed": 2, "still denied": 1}
    assert wider.rules[Outcome.NEWLY_ALLOWED] == {"p/allow": 2}


def test_a_candidate_of_another_name_stands_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    candidate = policy(WIDER, name="renamed")
    found = replayed([under(OLD, edit(5)), under(OLD)], candidate, tmp_path)
    assert outcomes(found) == {"newly allowed": 1, "still allowed": 1}


def test_what_no_policy_concerns_is_denied_and_may_be_allowed(tmp_path: Path) -> None:
    elsewhere = "match: {tenants: [globex]}\n" + OLD
    records = [under(OLD), under(OLD, tenant="globex"), under(elsewhere)]
    found = replayed(records, policy(elsewhere), tmp_path)
    assert outcomes(found) == {"newly denied": 1, "still allowed": 1, "still denied": 1}
    assert found.rules[Outcome.NEWLY_DENIED] == {"match": 1}
    assert outcomes(replay(tmp_path, policy(OLD))) == {"still allowed": 2, "newly allowed": 1}
    # A server without policies allows everything.
    ungoverned = recorded(ask(edit(5)), Decision(True, ""))
    assert outcomes(replayed([ungoverned], policy(OLD), tmp_path / "ungoverned")) == {"newly denied": 1}


def test_what_the_log_does_not_hold_is_counted_with_its_reason(tmp_path: Path) -> None:
    together = Denial("", "program", "too many rows")
    facts = ask(edit(3))
    records = [
        under(OLD, along(torch.ones(tiny.WIDTH))),
        under(OLD, edit(3)),
        recorded(facts, Decision(False, "other@r1,p@r1", (together,))),
        recorded(facts, Decision(False, "p@r1", (together,))),
        recorded(facts, Decision(True, "p@r1"), edits=({"op": "clamp", "feature": 3, "value": 1.0},)),
        recorded(facts, Decision(True, "p@r1"), edits=({"op": "clamp", "index": 480, "value": 1.0},)),
        recorded(facts, Decision(True, "p@r1"), edits=({"op": "twist", "index": 3, "sae": "first"},)),
        recorded(
            facts, Decision(True, "p@r1"), edits=({"op": "add", "index": 3, "sae": "first", "value": None},)
        ),
    ]
    found = replayed(records, policy(OLD), tmp_path / "log")
    assert outcomes(found) == {"not replayed": 6, "still allowed": 1, "newly allowed": 1}
    assert list(found.reasons.values()) == [1] * 6
    reasons = " | ".join(found.reasons)
    for told in (
        "an edit is of a direction, which a log does not hold",
        "an edit lacks its index",
        "denied by several policies together",
        "name one of the 3 SAEs",
        "an edit is not as it should be: op",
        "add needs a value",
    ):
        assert told in reasons
    masked = replayed(
        [under(OLD, edit(3))], policy(OLD), tmp_path / "m", mask=("/edits/*/value", "/principal")
    )
    assert masked.reasons == {"edits is masked in the log": 1}
    harmless = replayed([under(OLD, edit(3))], policy(OLD), tmp_path / "h", mask=("/principal",))
    assert outcomes(harmless) == {"still allowed": 1}


def test_a_redirect_is_replayed_with_what_it_writes(tmp_path: Path) -> None:
    to_four, to_five = redirect(3, 4, 2.0, strength=1.0, threshold=0.5), redirect(3, 5)
    assert (
        edits_recorded((to_four,))[0].items()
        >= {
            "op": "redirect",
            "index": 3,
            "value": 2.0,
            "to": {"sae": "first", "index": 4},
            "strength": 1.0,
            "threshold": 0.5,
        }.items()
    )
    found = replayed([under(OLD, to_four), under(OLD, to_five)], policy(WIDER), tmp_path / "wider")
    assert outcomes(found) == {"still allowed": 1, "newly allowed": 1}
    weaker = replayed([under(OLD, to_four)], policy(OLD.replace("max: 4", "max: 0.5")), tmp_path / "weaker")
    assert outcomes(weaker) == {"newly denied": 1}
    along_one = under(FREE, redirect(3, torch.ones(tiny.WIDTH)))
    assert outcomes(replayed([along_one], policy(FREE), tmp_path / "d")) == {"not replayed": 1}


def test_lines_that_are_no_records_are_counted_and_examples_are_few(tmp_path: Path) -> None:
    replayed([under(OLD, edit(4))] * 8, policy(NARROWER), tmp_path)
    with (tmp_path / ACTIVE).open("ab") as file:
        file.write(b'{"kind": "decision"}\nnothing\n{')
    found = replay(tmp_path / ACTIVE, policy(NARROWER), most_examples=3)
    assert (found.unreadable, found.counts[Outcome.NEWLY_DENIED]) == (3, 8)
    assert len(found.examples[Outcome.NEWLY_DENIED]) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(AuditError, match="holds no audit log"):
        replay(tmp_path / "empty", policy(OLD))


VALUES = st.sampled_from([0.0, 1.0, 4.0, 4.5])
PLAIN = st.builds(
    edit,
    st.sampled_from([3, 4, 5, 7]),
    st.sampled_from([Op.CLAMP, Op.SCALE, Op.ADD, Op.CAP, Op.FLOOR, Op.CLAMP_IF_ACTIVE, Op.ABLATE, Op.BAN]),
    VALUES,
    phase=st.sampled_from(list(Phase)),
)
IN_UNITS = st.builds(edit, st.just(3), st.just(Op.CAP), VALUES, unit=st.sampled_from(list(Unit)))

REDIRECTS = st.builds(
    redirect,
    st.sampled_from([3, 4, 7]),
    st.sampled_from([3, 5, 7]),
    VALUES,
    unit=st.just(Unit.FEATURE),
    strength=st.sampled_from([0.0, 1.0, 5.0]),
    threshold=st.sampled_from([0.0, 0.5]),
)


@st.composite
def requests(draw: st.DrawFn) -> RequestFacts:
    """A request of distinct features, as clients make them."""
    found = draw(
        st.lists(
            st.one_of(PLAIN, IN_UNITS, REDIRECTS), max_size=3, unique_by=lambda each: each.edit.probe.key
        )
    )
    placed = [replace(each, path=f"steering.edits[{n}]") for n, each in enumerate(found)]
    return ask(*placed, tenant=draw(st.sampled_from(["acme", "globex"])))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(requests(), min_size=1, max_size=6),
    st.sampled_from([OLD, WIDER, NARROWER, FREE]),
    st.sampled_from(
        [OLD, WIDER, NARROWER, FREE, "match: {tenants: [globex]}\n" + FREE, "mode: audit\n" + OLD]
    ),
    st.booleans(),
)
def test_a_replay_decides_as_the_candidate_in_place_would(
    asked: list[RequestFacts], old: str, new: str, beside: bool
) -> None:
    others = (policy(OTHER, name="other"),) if beside else ()
    before = PolicySet((policy(old), *others))
    after = PolicySet((policy(new), *others))
    with TemporaryDirectory() as folder:
        records = [recorded(each, before.decide(each)) for each in asked]
        found = replayed(records, policy(new), Path(folder), fsync="never")
    wanted = dict.fromkeys(Outcome, 0)
    for each in asked:
        was, becomes = before.decide(each).allowed, after.decide(each).allowed
        if was:
            wanted[Outcome.STILL_ALLOWED if becomes else Outcome.NEWLY_DENIED] += 1
        else:
            wanted[Outcome.NEWLY_ALLOWED if becomes else Outcome.STILL_DENIED] += 1
    assert {outcome: found.counts[outcome] for outcome in Outcome} == wanted
