"""Who may call what, over real sockets: every RPC that is registered, with every kind of caller."""

import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import saegis
from saegis import v1
from saegis.v1 import generation_pb2, model_pb2, steering_pb2
from saegis_server.rpc.auth import roles
from saegis_server.rpc.auth.authorization import token_of
from saegis_server.rpc.auth.identity import ANONYMOUS, Identity, current_identity
from saegis_server.rpc.auth.principals import new_token, token_digest
from saegis_server.rpc.auth.roles import EVERYBODY, NEEDED, Needs, Role, needs, serves
from saegis_server.rpc.server.listener import register, register_open
from saegis_server.rpc.wire.problems import RoleMissingError
from tests.rpc.callers import bearer, by_token, expect, identities, outcome, spied
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Running, eventually, failure, running

Code = grpc.StatusCode
METHODS = tuple(sorted(NEEDED))
#: A principal of each role alone, and one of all roles but that.
ONLY = {role: new_token() for role in Role}
ALL_BUT = {role: new_token() for role in Role}
#: Steering that asks for something, in each of the ways in which it can.
STEERING = (
    steering_pb2.Steering(edits=[steering_pb2.Edit()]),
    steering_pb2.Steering(watches=[steering_pb2.Watch()]),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that knows the principals of ONLY and ALL_BUT."""
    only = {f"only-{role}": (frozenset((role,)), by_token(token)) for role, token in ONLY.items()}
    but = {f"all-but-{role}": (frozenset(Role) - {role}, by_token(token)) for role, token in ALL_BUT.items()}
    path = identities(tmp_path_factory.mktemp("identities"), only | but)
    with running(identities=path) as server:
        yield server


@pytest.fixture(scope="module")
def channel(guarded: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(guarded.target) as opened:
        yield opened


class _Recorder:
    """Takes the place of grpc's server while services are registered: what it would serve."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The registered methods hold the same."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}


@pytest.fixture(scope="module")
def registered(guarded: Running) -> Mapping[str, Any]:
    """The handler of every RPC that the server registers, by full method name."""
    recorder = _Recorder()
    register(recorder, guarded.services)
    register_open(recorder, guarded.server.gate, reflects=True)
    return recorder.handlers


def call(channel: grpc.Channel, handler: Any, method: str, data: bytes = b"", **options: Any) -> object:
    """Call a method of any kind with bytes; the first answer of a stream."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_"
    name += "stream" if handler.response_streaming else "unary"
    made = getattr(channel, name)(method)
    answer = made(iter([data]) if handler.request_streaming else data, timeout=20, **options)
    if not handler.response_streaming:
        return answer
    first = next(answer)
    answer.cancel()
    return first


def described() -> set[str]:
    """The RPCs of every service in every module of the contract."""
    found = set()
    for each in pkgutil.iter_modules(v1.__path__, f"{v1.__name__}."):
        if each.name.endswith("_pb2"):
            for service in importlib.import_module(each.name).DESCRIPTOR.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def test_the_table_has_every_rpc_and_no_other(registered: Mapping[str, Any]) -> None:
    own = {method for method in NEEDED if method.startswith("/saegis.v1.")}
    assert own == described()
    assert set(registered) <= set(NEEDED) | EVERYBODY
    assert set(registered) >= EVERYBODY
    assert {method for method in registered if method.startswith("/saegis.v1.")} <= own
    assert not set(NEEDED) & EVERYBODY


def test_every_request_with_steering_needs_the_role_for_it() -> None:
    """A new RPC that takes steering must be entered, or be one that runs nothing."""
    taking = set()
    for each in pkgutil.iter_modules(v1.__path__, f"{v1.__name__}."):
        if not each.name.endswith("_pb2"):
            continue
        for service in importlib.import_module(each.name).DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if _takes_steering(method.input_type):
                    taking.add(f"/{service.full_name}/{method.name}")
    assert taking == {
        "/saegis.v1.GenerationService/Generate",
        "/saegis.v1.GenerationService/StreamGenerate",
        "/saegis.v1.GenerationService/Score",
        "/saegis.v1.PolicyService/EvaluatePolicy",
    }
    for method in taking - {"/saegis.v1.PolicyService/EvaluatePolicy"}:
        ((role, field),) = NEEDED[method].further_roles(_request(method, STEERING[0]))
        assert role is Role.STEER
        assert field.endswith("steering.edits")


def _takes_steering(message: Any) -> bool:
    inner = [field.message_type for field in message.fields if field.message_type is not None]
    return any(
        each.full_name == "saegis.v1.Steering"
        or (each.full_name.startswith("saegis.v1.") and _takes_steering(each))
        for each in inner
        if each is not message
    )


def _request(method: str, steering: steering_pb2.Steering) -> Message:
    generate = generation_pb2.GenerateRequest(steering=steering)
    return {
        "Generate": generate,
        "StreamGenerate": generation_pb2.StreamGenerateRequest(request=generate),
        "Score": generation_pb2.ScoreRequest(steering=steering),
    }[method.rpartition("/")[2]]


@pytest.mark.parametrize("method", METHODS)
def test_each_rpc_lets_in_its_role_and_nobody_else(
    method: str, registered: Mapping[str, Any], channel: grpc.Channel
) -> None:
    if method not in registered:
        unary: Any = channel.unary_unary(method)
        assert failure(lambda: unary(b"")).code is Code.UNIMPLEMENTED
        return
    attempt = partial(call, channel, registered[method], method)
    role = NEEDED[method].role
    for metadata in ((), bearer(new_token()), bearer("x"), (("authorization", ONLY[role]),)):
        expect(failure(partial(attempt, metadata=metadata)), Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    # What cannot be read is not read: it would be INVALID_ARGUMENT.
    expect(failure(partial(attempt, b"\xff\xff")), Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    lacking = failure(partial(attempt, b"\xff\xff", metadata=bearer(ALL_BUT[role])))
    expect(lacking, Code.PERMISSION_DENIED, "ROLE_MISSING")
    assert dict(lacking.details["ErrorInfo"].metadata) == {"role": role, "method": method}
    # Some RPCs find that the request is empty, once its caller is let in.
    let_in = (Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION)
    assert outcome(partial(attempt, metadata=bearer(ONLY[role]))) in let_in


@pytest.mark.parametrize("metadata", [(), bearer("x"), bearer(ONLY[Role.USE])])
def test_health_is_told_to_everybody(metadata: tuple[tuple[str, str], ...], channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request, serving = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse.SERVING
    assert stub.Check(request, metadata=metadata).status == serving
    watched = stub.Watch(request, metadata=metadata, timeout=20)
    assert next(watched).status == serving
    watched.cancel()


def test_what_is_malformed_is_told_to_those_who_may(
    registered: Mapping[str, Any], channel: grpc.Channel
) -> None:
    for method, handler in registered.items():
        if method in NEEDED:
            options = {"metadata": bearer(ONLY[NEEDED[method].role])}
            found = failure(partial(call, channel, handler, method, b"\xff\xff", **options))
            expect(found, Code.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_reflection_answers_each_request_of_its_stream(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="saegis.v1.ModelService"),
    ]
    first, second = stub.ServerReflectionInfo(iter(asked), metadata=bearer(ONLY[Role.INSPECT]))
    assert "saegis.v1.ModelService" in {each.name for each in first.list_services_response.service}
    assert second.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("steering", STEERING, ids=["edits", "watches"])
@pytest.mark.parametrize("kind", ["Generate", "StreamGenerate", "Score"])
def test_steering_needs_a_role_of_its_own(
    kind: str, steering: steering_pb2.Steering, channel: grpc.Channel
) -> None:
    method = f"/saegis.v1.GenerationService/{kind}"
    stub = getattr(Stubs.on(channel).generation, kind)
    role = NEEDED[method].role
    found = failure(lambda: stub(_request(method, steering), metadata=bearer(ONLY[role])))
    expect(found, Code.PERMISSION_DENIED, "ROLE_MISSING")
    assert dict(found.details["ErrorInfo"].metadata) == {"role": Role.STEER, "method": method}
    assert found.fields == [("request." if kind == "StreamGenerate" else "") + _used(steering)]
    # Those who may steer hear what is wrong with the request instead.
    assert failure(lambda: stub(_request(method, steering), metadata=bearer(ALL_BUT[Role.OPERATE]))).code in (
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
    )
    plain = failure(lambda: stub(_request(method, steering_pb2.Steering()), metadata=bearer(ONLY[role])))
    assert plain.code is Code.INVALID_ARGUMENT


def test_the_model_without_rules_needs_a_role_of_its_own(channel: grpc.Channel) -> None:
    stub = Stubs.on(channel).generation
    request = generation_pb2.ScoreRequest(text="the river", unruled=True)
    found = failure(lambda: stub.Score(request, metadata=bearer(ALL_BUT[Role.UNRULED])))
    expect(found, Code.PERMISSION_DENIED, "ROLE_MISSING")
    assert dict(found.details["ErrorInfo"].metadata)["role"] == Role.UNRULED
    assert found.fields == ["unruled"]
    assert stub.Score(request, metadata=bearer(ALL_BUT[Role.OPERATE])).plain_logprobs
    request.unruled = False
    assert stub.Score(request, metadata=bearer(ALL_BUT[Role.UNRULED])).plain_logprobs


def _used(steering: steering_pb2.Steering) -> str:
    return f"steering.{steering.ListFields()[0][0].name}"


def test_the_client_sends_its_token(guarded: Running) -> None:
    with saegis.Client(guarded.target, token=ONLY[Role.USE]) as client:
        assert client.generate("the river", max_tokens=3, temperature=0.0).token_ids
        with pytest.raises(saegis.PermissionDenied) as denied:
            client.generate("the river", max_tokens=3, steering=[saegis.ban(saegis.feature(7, sae="first"))])
    assert (denied.value.reason, dict(denied.value.metadata)["role"]) == ("ROLE_MISSING", "steer")
    with saegis.Client(guarded.target, token=new_token()) as client, pytest.raises(saegis.Unauthenticated):
        list(client.stream("the river", max_tokens=3))
    eventually(guarded.is_idle)


def test_failures_are_counted_and_logged_and_no_token_is_told(
    guarded: Running, channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    def counted(reason: str) -> float:
        found = guarded.services.metrics.registry.get_sample_value(
            "saegis_authentication_failures_total", {"reason": reason}
        )
        return found or 0.0

    stub = Stubs.on(channel).models
    request = model_pb2.GetLoadRequest()
    stranger = new_token()
    before = {reason: counted(reason) for reason in ("missing", "token")}
    with caplog.at_level(logging.DEBUG):
        told = [
            failure(lambda: stub.GetLoad(request)),
            failure(lambda: stub.GetLoad(request, metadata=bearer(stranger))),
            failure(lambda: stub.GetLoad(request, metadata=bearer(ONLY[Role.USE]))),
        ]
        stub.GetLoad(request, metadata=bearer(ONLY[Role.OPERATE]))
    assert {reason: counted(reason) - was for reason, was in before.items()} == {"missing": 1, "token": 1}
    lines = [each.getMessage() for each in caplog.records if "authentication failed" in each.getMessage()]
    assert [line.rpartition("reason=")[2] for line in lines] == ["missing", "token"]
    assert all("method=/saegis.v1.ModelService/GetLoad peer=ipv4:127.0.0.1:" in line for line in lines)
    for token in (stranger, ONLY[Role.USE], ONLY[Role.OPERATE]):
        for shown in (caplog.text, repr(told)):
            assert token not in shown
            assert token.removeprefix("saegis_") not in shown
            assert token_digest(token) not in shown


#: What gRPC lets a client send as the value of a header.
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80)


@settings(max_examples=150, deadline=None)
@given(
    headers=st.lists(
        PRINTABLE
        | PRINTABLE.map(lambda text: f"Bearer {text}")
        | st.sampled_from([f"Bearer {ONLY[Role.OPERATE]}", f"Basic {ONLY[Role.OPERATE]}"]),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_the_headers_say_a_stranger_is_a_stranger(channel: grpc.Channel, headers: list[str]) -> None:
    assume(headers != [f"Bearer {ONLY[Role.OPERATE]}"])
    sent = tuple(("authorization", value) for value in headers)
    found = failure(lambda: Stubs.on(channel).models.GetLoad(model_pb2.GetLoadRequest(), metadata=sent))
    expect(found, Code.UNAUTHENTICATED, "UNAUTHENTICATED")


@given(st.lists(st.text() | st.binary(), max_size=3))
def test_headers_of_any_form_give_a_text(sent: list[str | bytes]) -> None:
    token = token_of(sent)
    assert token == "" or len(sent) == 1


@given(st.sampled_from(["Bearer", "bearer", "BEARER"]), st.integers(1, 3), st.text("abcXYZ019_-", min_size=1))
def test_the_scheme_is_read_as_http_has_it(scheme: str, spaces: int, token: str) -> None:
    header = scheme + " " * spaces + token
    assert token_of([header]) == token_of([header.encode()]) == token
    assert token_of([header, header]) == token_of([token]) == token_of([f"Basic {token}"]) == ""


def test_an_open_server_is_open_to_all(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(served, monkeypatch)
    with grpc.insecure_channel(served.target) as channel:
        for metadata in ((), bearer("x")):
            Stubs.on(channel).models.GetLoad(model_pb2.GetLoadRequest(), metadata=metadata)
    monkeypatch.undo()
    assert seen == [ANONYMOUS] * 2
    assert ANONYMOUS.roles == frozenset(Role)
    assert served.services.metrics.registry.get_sample_value("saegis_open_to_all") == 1.0


def test_a_method_that_the_table_lacks_is_open_to_nobody(
    served: Running, monkeypatch: pytest.MonkeyPatch, stubs: Stubs
) -> None:
    method = "/saegis.v1.ModelService/GetLoad"
    monkeypatch.delitem(NEEDED, method)
    found = failure(lambda: stubs.models.GetLoad(model_pb2.GetLoadRequest()))
    expect(found, Code.PERMISSION_DENIED, "ROLE_MISSING")
    assert dict(found.details["ErrorInfo"].metadata) == {"method": method}


def test_a_method_that_names_no_role_is_not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "NEEDED", {})

    @serves(model_pb2.DESCRIPTOR.services_by_name["ModelService"])
    class Silent:
        async def GetLoad(self) -> None: ...

        @needs(Role.OPERATE)
        async def GetModel(self) -> None: ...

    assert Silent.__name__ == "Silent"
    assert {"/saegis.v1.ModelService/GetModel": Needs(Role.OPERATE)} == roles.NEEDED


def test_a_role_can_be_asked_for_anywhere_in_an_rpc() -> None:
    with pytest.raises(LookupError):
        current_identity()
    with pytest.raises(RoleMissingError, match=r"steering\.edits needs the role 'steer'"):
        Identity("a", "t", frozenset((Role.USE,))).require(Role.STEER, field="steering.edits")
