from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import feature_pb2

class FeatureServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Inspect: grpc.UnaryUnaryMultiCallable[feature_pb2.InspectRequest, feature_pb2.InspectResponse]
    GetFeature: grpc.UnaryUnaryMultiCallable[feature_pb2.GetFeatureRequest, feature_pb2.GetFeatureResponse]
    SearchFeatures: grpc.UnaryUnaryMultiCallable[feature_pb2.SearchFeaturesRequest, feature_pb2.SearchFeaturesResponse]
    ContrastFeatures: grpc.UnaryUnaryMultiCallable[feature_pb2.ContrastFeaturesRequest, feature_pb2.ContrastFeaturesResponse]
    GetFeatureUsage: grpc.UnaryUnaryMultiCallable[feature_pb2.GetFeatureUsageRequest, feature_pb2.GetFeatureUsageResponse]

# Exists for type checkers only: cast FeatureServiceStub(channel) to it.

class FeatureServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Inspect: grpc.aio.UnaryUnaryMultiCallable[feature_pb2.InspectRequest, feature_pb2.InspectResponse]
    GetFeature: grpc.aio.UnaryUnaryMultiCallable[feature_pb2.GetFeatureRequest, feature_pb2.GetFeatureResponse]
    SearchFeatures: grpc.aio.UnaryUnaryMultiCallable[feature_pb2.SearchFeaturesRequest, feature_pb2.SearchFeaturesResponse]
    ContrastFeatures: grpc.aio.UnaryUnaryMultiCallable[feature_pb2.ContrastFeaturesRequest, feature_pb2.ContrastFeaturesResponse]
    GetFeatureUsage: grpc.aio.UnaryUnaryMultiCallable[feature_pb2.GetFeatureUsageRequest, feature_pb2.GetFeatureUsageResponse]

class FeatureServiceServicer:
    def Inspect(self, request: feature_pb2.InspectRequest, context: Any) -> feature_pb2.InspectResponse | Awaitable[feature_pb2.InspectResponse]: ...
    def GetFeature(self, request: feature_pb2.GetFeatureRequest, context: Any) -> feature_pb2.GetFeatureResponse | Awaitable[feature_pb2.GetFeatureResponse]: ...
    def SearchFeatures(self, request: feature_pb2.SearchFeaturesRequest, context: Any) -> feature_pb2.SearchFeaturesResponse | Awaitable[feature_pb2.SearchFeaturesResponse]: ...
    def ContrastFeatures(self, request: feature_pb2.ContrastFeaturesRequest, context: Any) -> feature_pb2.ContrastFeaturesResponse | Awaitable[feature_pb2.ContrastFeaturesResponse]: ...
    def GetFeatureUsage(self, request: feature_pb2.GetFeatureUsageRequest, context: Any) -> feature_pb2.GetFeatureUsageResponse | Awaitable[feature_pb2.GetFeatureUsageResponse]: ...

def add_FeatureServiceServicer_to_server(
    servicer: FeatureServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
