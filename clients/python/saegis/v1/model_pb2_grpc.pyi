from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import model_pb2

class ModelServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    GetModel: grpc.UnaryUnaryMultiCallable[model_pb2.GetModelRequest, model_pb2.GetModelResponse]
    GetServerInfo: grpc.UnaryUnaryMultiCallable[model_pb2.GetServerInfoRequest, model_pb2.GetServerInfoResponse]
    GetLoad: grpc.UnaryUnaryMultiCallable[model_pb2.GetLoadRequest, model_pb2.GetLoadResponse]
    Tokenize: grpc.UnaryUnaryMultiCallable[model_pb2.TokenizeRequest, model_pb2.TokenizeResponse]
    Detokenize: grpc.UnaryUnaryMultiCallable[model_pb2.DetokenizeRequest, model_pb2.DetokenizeResponse]

# Exists for type checkers only: cast ModelServiceStub(channel) to it.

class ModelServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    GetModel: grpc.aio.UnaryUnaryMultiCallable[model_pb2.GetModelRequest, model_pb2.GetModelResponse]
    GetServerInfo: grpc.aio.UnaryUnaryMultiCallable[model_pb2.GetServerInfoRequest, model_pb2.GetServerInfoResponse]
    GetLoad: grpc.aio.UnaryUnaryMultiCallable[model_pb2.GetLoadRequest, model_pb2.GetLoadResponse]
    Tokenize: grpc.aio.UnaryUnaryMultiCallable[model_pb2.TokenizeRequest, model_pb2.TokenizeResponse]
    Detokenize: grpc.aio.UnaryUnaryMultiCallable[model_pb2.DetokenizeRequest, model_pb2.DetokenizeResponse]

class ModelServiceServicer:
    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse | Awaitable[model_pb2.GetModelResponse]: ...
    def GetServerInfo(self, request: model_pb2.GetServerInfoRequest, context: Any) -> model_pb2.GetServerInfoResponse | Awaitable[model_pb2.GetServerInfoResponse]: ...
    def GetLoad(self, request: model_pb2.GetLoadRequest, context: Any) -> model_pb2.GetLoadResponse | Awaitable[model_pb2.GetLoadResponse]: ...
    def Tokenize(self, request: model_pb2.TokenizeRequest, context: Any) -> model_pb2.TokenizeResponse | Awaitable[model_pb2.TokenizeResponse]: ...
    def Detokenize(self, request: model_pb2.DetokenizeRequest, context: Any) -> model_pb2.DetokenizeResponse | Awaitable[model_pb2.DetokenizeResponse]: ...

def add_ModelServiceServicer_to_server(
    servicer: ModelServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
