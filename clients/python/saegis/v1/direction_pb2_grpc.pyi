from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import direction_pb2

class DirectionServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    UploadDirection: grpc.UnaryUnaryMultiCallable[direction_pb2.UploadDirectionRequest, direction_pb2.UploadDirectionResponse]
    ListDirections: grpc.UnaryUnaryMultiCallable[direction_pb2.ListDirectionsRequest, direction_pb2.ListDirectionsResponse]
    DeleteDirection: grpc.UnaryUnaryMultiCallable[direction_pb2.DeleteDirectionRequest, direction_pb2.DeleteDirectionResponse]

# Exists for type checkers only: cast DirectionServiceStub(channel) to it.

class DirectionServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    UploadDirection: grpc.aio.UnaryUnaryMultiCallable[direction_pb2.UploadDirectionRequest, direction_pb2.UploadDirectionResponse]
    ListDirections: grpc.aio.UnaryUnaryMultiCallable[direction_pb2.ListDirectionsRequest, direction_pb2.ListDirectionsResponse]
    DeleteDirection: grpc.aio.UnaryUnaryMultiCallable[direction_pb2.DeleteDirectionRequest, direction_pb2.DeleteDirectionResponse]

class DirectionServiceServicer:
    def UploadDirection(self, request: direction_pb2.UploadDirectionRequest, context: Any) -> direction_pb2.UploadDirectionResponse | Awaitable[direction_pb2.UploadDirectionResponse]: ...
    def ListDirections(self, request: direction_pb2.ListDirectionsRequest, context: Any) -> direction_pb2.ListDirectionsResponse | Awaitable[direction_pb2.ListDirectionsResponse]: ...
    def DeleteDirection(self, request: direction_pb2.DeleteDirectionRequest, context: Any) -> direction_pb2.DeleteDirectionResponse | Awaitable[direction_pb2.DeleteDirectionResponse]: ...

def add_DirectionServiceServicer_to_server(
    servicer: DirectionServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
