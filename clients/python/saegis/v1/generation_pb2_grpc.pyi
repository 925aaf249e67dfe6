from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import generation_pb2

class GenerationServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Generate: grpc.UnaryUnaryMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
    StreamGenerate: grpc.UnaryStreamMultiCallable[generation_pb2.StreamGenerateRequest, generation_pb2.StreamGenerateResponse]
    Score: grpc.UnaryUnaryMultiCallable[generation_pb2.ScoreRequest, generation_pb2.ScoreResponse]

# Exists for type checkers only: cast GenerationServiceStub(channel) to it.

class GenerationServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Generate: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
    StreamGenerate: grpc.aio.UnaryStreamMultiCallable[generation_pb2.StreamGenerateRequest, generation_pb2.StreamGenerateResponse]
    Score: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.ScoreRequest, generation_pb2.ScoreResponse]

class GenerationServiceServicer:
    def Generate(self, request: generation_pb2.GenerateRequest, context: Any) -> generation_pb2.GenerateResponse | Awaitable[generation_pb2.GenerateResponse]: ...
    def StreamGenerate(self, request: generation_pb2.StreamGenerateRequest, context: Any) -> Iterator[generation_pb2.StreamGenerateResponse] | AsyncIterator[generation_pb2.StreamGenerateResponse]: ...
    def Score(self, request: generation_pb2.ScoreRequest, context: Any) -> generation_pb2.ScoreResponse | Awaitable[generation_pb2.ScoreResponse]: ...

def add_GenerationServiceServicer_to_server(
    servicer: GenerationServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
