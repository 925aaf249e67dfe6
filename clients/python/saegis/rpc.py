"""RPCs of the contract as methods of both clients, each described once."""

import inspect
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

import grpc

from saegis.base import HEALTH_CHECK, BaseClient, HealthRequest, HealthResponse
from saegis.v1 import (
    audit_pb2_grpc,
    direction_pb2_grpc,
    feature_pb2_grpc,
    generation_pb2_grpc,
    model_pb2_grpc,
    policy_pb2_grpc,
)

if TYPE_CHECKING:
    from saegis.client import AsyncClient, Client

P = ParamSpec("P")
Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")
_Owner = type[BaseClient]


class Stubs:
    """The services on one channel of grpc or grpc.aio; the generated classes take both at run time."""

    def __init__(self, channel: object) -> None:
        on = cast(grpc.Channel, channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(on)
        self.feature = feature_pb2_grpc.FeatureServiceStub(on)
        self.model = model_pb2_grpc.ModelServiceStub(on)
        self.policy = policy_pb2_grpc.PolicyServiceStub(on)
        self.audit = audit_pb2_grpc.AuditServiceStub(on)
        self.direction = direction_pb2_grpc.DirectionServiceStub(on)
        self.health: grpc.UnaryUnaryMultiCallable[HealthRequest, HealthResponse] = on.unary_unary(
            HEALTH_CHECK,
            request_serializer=HealthRequest.SerializeToString,
            response_deserializer=HealthResponse.FromString,
        )


class Rpc(Generic[P, Result]):
    """A method that blocks in `Client` and is a coroutine function in `AsyncClient`."""

    def __init__(
        self,
        stub: "Callable[[Stubs], grpc.UnaryUnaryMultiCallable[Any, Any]]",
        read: Callable[[Any], Result],
        request: Callable[Concatenate[Any, P], Any],
    ) -> None:
        def blocking(client: "Client", *args: P.args, **kwargs: P.kwargs) -> Result:
            message = request(client, *args, **kwargs)
            answer: Any = client._call(stub(client._stubs), message, _timeout(kwargs))
            return read(answer)

        async def asynchronous(client: "AsyncClient", *args: P.args, **kwargs: P.kwargs) -> Result:
            message = request(client, *args, **kwargs)
            answer: Any = await client._call(stub(client._stubs), message, _timeout(kwargs))
            return read(answer)

        self.__doc__ = request.__doc__
        self._blocking = _dressed(blocking, request, read)
        self._asynchronous = _dressed(asynchronous, request, read)

    @overload
    def __get__(self, client: "Client", owner: _Owner) -> Callable[P, Result]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: _Owner) -> Callable[P, Coroutine[Any, Any, Result]]: ...
    @overload
    def __get__(self, client: None, owner: _Owner) -> Any: ...
    def __get__(self, client: object, owner: _Owner) -> Any:
        method = self._asynchronous if owner._is_async else self._blocking
        return method.__get__(client, owner)


def rpc(
    stub: "Callable[[Stubs], grpc.UnaryUnaryMultiCallable[Request, Response]]",
    read: Callable[[Response], Result],
) -> Callable[[Callable[Concatenate[Any, P], Request]], Rpc[P, Result]]:
    """Make an RPC a method of both clients, from the function that writes its request.

    The method has the function's arguments, `timeout` among them, and its docstring. stub: selects the RPC.
    read: makes the result from the answer.
    """
    return lambda request: Rpc(stub, read, request)


def _dressed(method: Any, request: Callable[..., Any], read: Callable[..., Any]) -> Any:
    """The method with the name, docstring and arguments of the function that writes its request."""
    returned = inspect.signature(read).return_annotation
    update_wrapper(method, request)
    method.__signature__ = inspect.signature(request).replace(return_annotation=returned)
    return method


def _timeout(arguments: dict[str, Any]) -> float | None:
    """The call's own deadline: every method has the keyword argument `timeout`."""
    timeout: float | None = arguments.get("timeout")
    return timeout
