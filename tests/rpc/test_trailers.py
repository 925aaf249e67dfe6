"""Whatever a request holds, its failure keeps its status: trailers stay well under what a client reads."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saegis_server.engine import api as engine
from saegis_server.policy import errors as policy
from saegis_server.policy.decide.decision import Decision, Denial
from saegis_server.problem import Problem
from saegis_server.rpc.wire import problems
from saegis_server.rpc.wire.errors import DETAILS_KEY, LONGEST_MESSAGE, describe, shortened, trailers
from saegis_server.sae import catalog
from saegis_server.steering.program import SteeringError
from tests.rpc.harness import told
from tests.rpc.test_unknown_names import RIGHT, channel

__all__ = ["channel"]

#: A client reads 8 KiB of trailers; beyond that its gRPC may make RESOURCE_EXHAUSTED of any status.
MOST_BYTES = 7 * 2**10
#: What a header takes beside its name and value.
HEADER_BYTES = 32
Pairs = tuple[tuple[str, str | bytes], ...]

text = st.builds(
    lambda piece, times: piece * times,
    st.text(st.characters(), min_size=1, max_size=8),
    st.integers(1, 4000),
)
wire_text = text.filter(lambda each: each.encode(errors="ignore").decode() == each)


def size(message: str, found: Pairs) -> int:
    """How many bytes a failure takes as it is sent: percent-encoded, base64, and the headers' own."""
    printable = "".join(chr(code) for code in range(32, 127) if code != ord("%"))
    values = [quote(message, safe=printable).encode()]
    values += [value.encode() if isinstance(value, str) else value for _, value in found]
    names = ["grpc-message", *(name for name, _ in found)]
    sizes = [
        len(name) + (-(-len(value) // 3) * 4 if name.endswith("-bin") else len(value)) + HEADER_BYTES
        for name, value in zip(names, values, strict=True)
    ]
    return sum(sizes)


def uncompiled(one: str, two: str) -> Exception:
    return policy.CompileError([Problem(two, one, one, 3)] * 40)


def denied(one: str, two: str) -> Exception:
    denials = (Denial(one, two, two, one),) * 40
    return problems.PolicyDeniedError("an id", Decision(allowed=False, policy_revision=one, denials=denials))


ERRORS: dict[str, Callable[[str, str], Exception]] = {
    "field": engine.FieldError,
    "context": lambda one, two: problems.ContextLengthError(one, 9, 8),
    "conflict": lambda one, two: problems.ConflictError(one, (two, one, two), one),
    "malformed": lambda one, two: problems.MalformedRequestError(one),
    "steering": lambda one, two: SteeringError(one, None),
    "sae": lambda one, two: catalog.UnknownSAEError(one, two, one),
    "feature": lambda one, two: catalog.UnknownFeatureError(one, two, one, two),
    "ambiguous": catalog.AmbiguousFeatureError,
    "site": lambda one, two: problems.UnknownSiteError(one, two, one),
    "sae at site": lambda one, two: catalog.SAENotAtSiteError(one, two, one),
    "precondition": lambda one, two: problems.PreconditionError("KIND", one, two),
    "in flight": lambda one, two: problems.InFlightError(one),
    "policy": uncompiled,
    "denied": denied,
    "unknown policy": lambda one, two: policy.UnknownPolicyError(one, (two,)),
    "unknown revision": lambda one, two: policy.UnknownRevisionError(one, two, one),
    "role": lambda one, two: problems.RoleMissingError(one, two, one),
    "caller": problems.UnauthenticatedError,
    "busy": lambda one, two: problems.BusyError("RATE_LIMITED", one, two, 1.0),
    "not serving": lambda one, two: problems.NotServingError("DRAINING", one, 1.0),
}


@pytest.mark.parametrize("kind", ERRORS)
@settings(max_examples=25, deadline=None)
@given(one=text, two=text)
def test_every_row_of_the_table_fits_into_trailers(kind: str, one: str, two: str) -> None:
    problem = describe(ERRORS[kind](one, two))
    assert problem.reason != "INTERNAL_ERROR"
    assert size(problem.message, trailers(problem, "\U0001f680" * 128)) < MOST_BYTES


@settings(max_examples=200, deadline=None)
@given(text, st.integers(3, 2000), st.sampled_from((1, 3)))
def test_what_is_shortened_fits_and_says_so(given_text: str, most: int, escaped: int) -> None:
    found = shortened(given_text, most, escaped)
    plain = sum(1 if " " <= char <= "~" and char != "%" else escaped * len(char.encode()) for char in found)
    assert plain <= most
    whole = given_text.encode(errors="backslashreplace").decode()
    assert found == whole or (found.endswith("...") and whole.startswith(found[:-3]))


def strings(message: Message) -> Iterator[tuple[Any, str]]:
    """Every text of a message, with the message that holds it."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            if field.type == field.TYPE_STRING:
                yield message, field.name
        elif isinstance(value, Message):
            if message.HasField(field.name):
                yield from strings(value)
        elif not field.message_type.GetOptions().map_entry:
            yield from chain.from_iterable(map(strings, value))


def fill(request: Message, place: int, content: str) -> None:
    """Put a text into one of a request's fields."""
    holders = list(strings(request))
    holder, name = holders[place % len(holders)]
    repeated = holder.DESCRIPTOR.fields_by_name[name].is_repeated
    if repeated:
        getattr(holder, name).append(content)
    else:
        setattr(holder, name, content)


@pytest.mark.parametrize("method", RIGHT)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 60), content=wire_text)
def test_no_field_costs_a_failure_its_status(
    channel: grpc.Channel, method: str, place: int, content: str
) -> None:
    request = type(RIGHT[method])()
    request.CopyFrom(RIGHT[method])
    fill(request, place, content)
    make: Any = channel.unary_stream if method.endswith("StreamGenerate") else channel.unary_unary
    try:
        answer = make(f"/saegis.v1.{method}")(request.SerializeToString(), timeout=20.0)
        for _ in answer if method.endswith("StreamGenerate") else ():
            pass
    except grpc.RpcError as error:
        failed = told(error)
        assert failed.reason not in ("", "INTERNAL_ERROR"), failed
        sent: Any = tuple(failed.trailers.items())
        assert DETAILS_KEY in failed.trailers
        assert size(failed.message, sent) < MOST_BYTES
        assert len(quote(failed.message)) <= 3 * LONGEST_MESSAGE
