"""However an answer ends, the audit log has once what was done until then, and an urgent policy ends all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, policy_pb2, policy_pb2_grpc, prompt_pb2, steering_pb2
from saegis_server.engine.api import QueueFullError
from saegis_server.policy.bundle.bundle import Bundle
from tests.rpc import tiny
from tests.rpc.harness import Running, embedded, eventually, failure
from tests.rpc.test_governor import ask, records, ruled, write

Stub = generation_pb2_grpc.GenerationServiceStub
#: A ban, a condition that holds at once, and a peak: everything that an answer's record can tell.
RULES = """
rules:
- {id: ban, ban: {features: [{sae: first, index: 3}]}}
- {id: noted, when: {if: {feature: {sae: first, index: 5}, above: -1000}, over: token}, record: {}}
- {id: peak, watch: {features: [{sae: first, index: 7}]}}
allow: [{id: any, ops: [add]}, {id: ids, uses: [token_ids]}]
limits: {after_bans: true}
"""
LONG_TEXT = pb.ScoreRequest(token_ids=prompt_pb2.TokenIds(ids=[7] * tiny.CONTEXT))


@contextmanager
def audited(folder: Path, body: str = RULES, **settings: Any) -> Iterator[tuple[Running, Stub]]:
    """A server under a policy, with an audit log."""
    audit = {"directory": str(folder / "audit"), "fsync": "never"}
    with ruled(write(folder, body), audit=audit, **settings) as found:
        yield found


def stream(stub: Stub, *edits: steering_pb2.Edit, **fields: Any) -> Any:
    """A greedy stream that has begun."""
    request = ask("the red bridge", fields.pop("max_tokens", 1500), *edits, **fields)
    begun = stub.StreamGenerate(pb.StreamGenerateRequest(request=request))
    next(begun)
    return begun


def only_answer(server: Running) -> dict[str, Any]:
    """The record of the only answer; it may still be on its way, and is there once and for all."""
    eventually(lambda: bool(records(server, "answer")))
    eventually(server.is_idle)
    (found,) = records(server, "answer")
    (decision,) = [each for each in records(server, "decision") if each["allowed"]]
    assert found["decision_id"] == decision["decision_id"]
    return found


def whole(record: dict[str, Any], at_least: int = 1) -> bool:
    """Whether a record tells what was done: so many tokens, the sites, the conditions and the peaks."""
    (site,), (condition,) = record["sites"], record["conditions"]
    tokens = record["usage"]["completion_tokens"]
    assert site["bans"] == 1
    assert condition["name"] == "p/noted"
    return bool(tokens >= at_least and condition["held_tokens"] >= at_least and record["peaks"])


def test_an_answer_cut_off_before_its_last_token_is_recorded_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audited(tmp_path) as (server, stub):
        go, step, fed = Event(), embedded(server.services).step, list[int]()
        decode = step.decode

        def held(*arguments: Any) -> Any:
            fed.append(1)
            assert len(fed) < 38 or go.wait(20)
            return decode(*arguments)

        monkeypatch.setattr(step, "decode", held)
        reader = stub.StreamGenerate(pb.StreamGenerateRequest(request=ask("the red bridge", 40)))
        read = 0
        while read < 38:
            read += len(next(reader).chunk.token_ids)
        eventually(lambda: len(fed) == 38)
        reader.cancel()
        eventually(lambda: server.server.gate.is_empty)
        assert not records(server, "answer"), "the engine is still at it"
        go.set()
        found = only_answer(server)
        assert found["finish_reasons"] == ["cancelled"]
        assert found["usage"]["completion_tokens"] < 40
        assert whole(found, at_least=38)


@pytest.mark.parametrize("unread", [4096, 100])
def test_an_answer_that_nobody_reads_is_recorded(tmp_path: Path, unread: int) -> None:
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with (
        audited(tmp_path, unread_limit=unread) as (server, _),
        grpc.insecure_channel(server.target, narrow) as channel,
    ):
        sampling = pb.SamplingParams(temperature=0.0, max_tokens=160, n=8, logprobs=20, ignore_eos=True)
        request = pb.GenerateRequest(text="the red bridge", sampling=sampling)
        reader = Stub(channel).StreamGenerate(pb.StreamGenerateRequest(request=request))
        found = only_answer(server)
        assert not server.server.gate.is_empty, "the call still waits for its reader"
        if unread == 4096:
            assert found["finish_reasons"] == ["length"] * 8
            assert whole(found, at_least=8 * 160)
        else:
            assert found["finish_reasons"] == ["SlowReaderError"] * 8
            assert whole(found, at_least=unread + 1)
        reader.cancel()
        eventually(lambda: server.server.gate.is_empty)
        assert only_answer(server) == found


def test_answers_that_fail_are_recorded_with_what_was_done(tmp_path: Path) -> None:
    refuse = RULES.replace("record: {}", "refuse: {message: no}").replace("over: token", "over: prompt")
    adds = steering_pb2.Edit(
        operation=steering_pb2.OPERATION_ADD,
        value=1e6,
        feature=steering_pb2.FeatureRef(sae="explosive", index=0),
    )
    for body, edits, timeout, reason, code in (
        (RULES, (adds,), 30.0, "SteeringDivergedError", grpc.StatusCode.INVALID_ARGUMENT),
        (refuse, (), 30.0, "refused", grpc.StatusCode.PERMISSION_DENIED),
        (RULES, (), 0.2, None, grpc.StatusCode.DEADLINE_EXCEEDED),
    ):
        folder = tmp_path / str(code.name)
        folder.mkdir()
        with audited(folder, body) as (server, stub):
            request = ask("the red bridge", 1900, *edits, n=2)
            request.sampling.ignore_eos = True
            assert failure(lambda: stub.Generate(request, timeout=timeout)).code is code  # noqa: B023
            found = only_answer(server)
            if reason is None:
                # Whether the engine's clock or the client's is first.
                assert set(found["finish_reasons"]) <= {"DeadlineExceededError", "cancelled"}
                assert whole(found)
            else:
                assert found["finish_reasons"] == [reason, reason]
                assert {site["bans"] for site in found["sites"]} >= {1}
                assert found["conditions"][0]["held_tokens"] == (1 if reason == "refused" else 0)
            assert found["usage"]["prompt_tokens"] > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("breaks", [False, True])
def test_what_a_drain_or_a_broken_engine_ends_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    with audited(tmp_path, grace_seconds=0.1) as (server, stub):
        begun, go, step = Event(), Event(), embedded(server.services).step
        decode = step.decode

        def held(*arguments: Any) -> Any:
            if begun.is_set():
                assert go.wait(20)
                if breaks:
                    raise RuntimeError("the device is gone")
            return decode(*arguments)

        monkeypatch.setattr(step, "decode", held)
        reader = stream(stub)
        begun.set()
        go.set()
        if not breaks:
            server.on_loop(server.server.drain())
        assert failure(lambda: reader).code is grpc.StatusCode.UNAVAILABLE
    (found,) = records(server, "answer")
    assert found["finish_reasons"] == ["EngineStoppedError"]
    assert whole(found)
    assert records(server)[-1]["kind"] == "stop"


@pytest.mark.parametrize("refused", [False, True])
def test_a_caller_who_goes_before_the_engine_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    with audited(tmp_path) as (server, stub):
        engine = server.services.engine
        submit, go = engine.submit, Event()

        def slowly(*arguments: Any) -> None:
            assert go.wait(20)
            if refused:
                raise QueueFullError(1, 1.0)
            submit(*arguments)

        monkeypatch.setattr(engine, "submit", slowly)
        with pytest.raises(grpc.RpcError):
            stub.Generate(ask("the red bridge", 1500), timeout=1.0)
        eventually(lambda: server.server.gate.is_empty)
        go.set()
        found = only_answer(server)
        assert found["finish_reasons"][0] in ("cancelled", "DeadlineExceededError")
        assert bool(found["usage"]) is not refused


@contextmanager
def reading_held(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """While a text is read, its second piece is held, and set free at the end; the event says that it is."""
    begun, go, step = Event(), Event(), embedded(server.services).step
    read = step.read

    def held(tokens: Any, start: int, *others: Any) -> Any:
        if start > 0:
            begun.set()
            assert go.wait(20)
        return read(tokens, start, *others)

    monkeypatch.setattr(step, "read", held)
    yield begun
    go.set()


def test_a_score_that_nobody_waits_for_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with audited(tmp_path) as (server, stub):
        with reading_held(server, monkeypatch) as begun:
            score = stub.Score.future(LONG_TEXT)
            assert begun.wait(20)
            score.cancel()
            eventually(lambda: server.server.gate.is_empty)
            assert not records(server, "answer")
        found = only_answer(server)
        assert found["finish_reasons"] == ["cancelled"]
        assert 0 < found["usage"]["prompt_tokens"] < tiny.CONTEXT
        assert found["sites"][0]["bans"] == 1
        assert found["peaks"]


def put_urgent(server: Running, folder: Path) -> None:
    """Put the next revision in force, urgently."""
    urgent = write(folder, "urgent: true\n" + RULES, serial=2)
    with grpc.insecure_channel(server.target) as channel:
        policies = policy_pb2_grpc.PolicyServiceStub(channel)
        etag = policies.GetPolicy(policy_pb2.GetPolicyRequest(name="p")).policy.etag
        policies.PutPolicy(policy_pb2.PutPolicyRequest(bundle=Bundle.read(urgent).archive(), etag=etag))


def ends(record: dict[str, Any]) -> tuple[str, list[str]]:
    return record["request_id"], record["finish_reasons"]


def test_an_urgent_policy_ends_everything_whatever_else_was_sent_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with audited(tmp_path) as (server, stub):
        first = stream(stub, request_id="same")
        for again in (
            lambda: stub.Generate(ask(request_id="same")),
            lambda: stub.Score(pb.ScoreRequest(text="the red bridge", request_id="same")),
        ):
            found = failure(again)
            assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_IN_FLIGHT")
        second = stream(stub, request_id="other")
        with reading_held(server, monkeypatch) as begun:
            long_text = pb.ScoreRequest(request_id="score", token_ids=LONG_TEXT.token_ids)
            score = stub.Score.future(long_text)
            assert begun.wait(20)
            put_urgent(server, tmp_path)
        for each in (first, second):
            *_, last = each
            assert last.complete.outcomes[0].finish_reason == pb.FINISH_REASON_ABORT
            assert last.complete.receipt.policy_revision == "p@r1"
        told = failure(score.result)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "POLICY_REPLACED")
        eventually(lambda: len(records(server, "answer")) == 3)
        assert sorted(map(ends, records(server, "answer"))) == [
            ("other", ["abort"]),
            ("same", ["abort"]),
            ("score", ["abort"]),
        ]
        assert stub.Generate(ask(request_id="same")).receipt.policy_revision == "p@r2"


def test_names_belong_to_a_tenant(tmp_path: Path) -> None:
    identities = tmp_path / "identities.yaml"
    lines = [
        f"  - {{name: {name}, tenant: {tenant}, roles: [use, inspect],"
        f" token_sha256: {hashlib.sha256(f'saegis_{name}'.encode()).hexdigest()}}}\n"
        for name, tenant in (("a", "acme"), ("b", "acme"), ("c", "other"))
    ]
    identities.write_text("apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n" + "".join(lines))

    def of(name: str) -> Any:
        return {"metadata": (("authorization", f"Bearer saegis_{name}"),)}

    with audited(tmp_path, identities=str(identities)) as (server, stub):
        request = ask("the red bridge", 1500, request_id="mine")
        running = stub.StreamGenerate(pb.StreamGenerateRequest(request=request), **of("a"))
        next(running)
        score = pb.ScoreRequest(text="the red bridge", request_id="mine")
        calls: tuple[Callable[[str], Any], ...] = (
            lambda name: stub.Generate(ask(request_id="mine"), **of(name)),
            lambda name: stub.Score(score, **of(name)),
        )
        for call in calls:
            assert failure(lambda: call("b")).reason == "REQUEST_IN_FLIGHT"  # noqa: B023
            assert call("c").request_id == "mine"
        running.cancel()
        eventually(server.is_idle)
        eventually(lambda: server.server.gate.is_empty)
        assert stub.Generate(ask(request_id="mine"), **of("b")).request_id == "mine"


def test_the_log_is_closed_after_what_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is submitted in a thread for a caller who has gone may end after the engine has stopped."""
    with audited(tmp_path, grace_seconds=0.1) as (server, stub):
        engine = server.services.engine
        submit = engine.submit

        def slowly(*arguments: Any) -> None:
            time.sleep(1.0)
            submit(*arguments)

        monkeypatch.setattr(engine, "submit", slowly)
        with pytest.raises(grpc.RpcError):
            stub.Generate(ask("the red bridge", 1500), timeout=0.1)
    (found,) = records(server, "answer")
    assert found["finish_reasons"] == ["cancelled"]
    assert records(server)[-1]["kind"] == "stop"
