from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import policy_pb2

class PolicyServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    GetPolicy: grpc.UnaryUnaryMultiCallable[policy_pb2.GetPolicyRequest, policy_pb2.GetPolicyResponse]
    ListPolicies: grpc.UnaryUnaryMultiCallable[policy_pb2.ListPoliciesRequest, policy_pb2.ListPoliciesResponse]
    ValidatePolicy: grpc.UnaryUnaryMultiCallable[policy_pb2.ValidatePolicyRequest, policy_pb2.ValidatePolicyResponse]
    EvaluatePolicy: grpc.UnaryUnaryMultiCallable[policy_pb2.EvaluatePolicyRequest, policy_pb2.EvaluatePolicyResponse]
    PutPolicy: grpc.UnaryUnaryMultiCallable[policy_pb2.PutPolicyRequest, policy_pb2.PutPolicyResponse]
    RollBackPolicy: grpc.UnaryUnaryMultiCallable[policy_pb2.RollBackPolicyRequest, policy_pb2.RollBackPolicyResponse]
    ListPolicyRevisions: grpc.UnaryUnaryMultiCallable[policy_pb2.ListPolicyRevisionsRequest, policy_pb2.ListPolicyRevisionsResponse]

# Exists for type checkers only: cast PolicyServiceStub(channel) to it.

class PolicyServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    GetPolicy: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.GetPolicyRequest, policy_pb2.GetPolicyResponse]
    ListPolicies: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.ListPoliciesRequest, policy_pb2.ListPoliciesResponse]
    ValidatePolicy: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.ValidatePolicyRequest, policy_pb2.ValidatePolicyResponse]
    EvaluatePolicy: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.EvaluatePolicyRequest, policy_pb2.EvaluatePolicyResponse]
    PutPolicy: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.PutPolicyRequest, policy_pb2.PutPolicyResponse]
    RollBackPolicy: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.RollBackPolicyRequest, policy_pb2.RollBackPolicyResponse]
    ListPolicyRevisions: grpc.aio.UnaryUnaryMultiCallable[policy_pb2.ListPolicyRevisionsRequest, policy_pb2.ListPolicyRevisionsResponse]

class PolicyServiceServicer:
    def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Any) -> policy_pb2.GetPolicyResponse | Awaitable[policy_pb2.GetPolicyResponse]: ...
    def ListPolicies(self, request: policy_pb2.ListPoliciesRequest, context: Any) -> policy_pb2.ListPoliciesResponse | Awaitable[policy_pb2.ListPoliciesResponse]: ...
    def ValidatePolicy(self, request: policy_pb2.ValidatePolicyRequest, context: Any) -> policy_pb2.ValidatePolicyResponse | Awaitable[policy_pb2.ValidatePolicyResponse]: ...
    def EvaluatePolicy(self, request: policy_pb2.EvaluatePolicyRequest, context: Any) -> policy_pb2.EvaluatePolicyResponse | Awaitable[policy_pb2.EvaluatePolicyResponse]: ...
    def PutPolicy(self, request: policy_pb2.PutPolicyRequest, context: Any) -> policy_pb2.PutPolicyResponse | Awaitable[policy_pb2.PutPolicyResponse]: ...
    def RollBackPolicy(self, request: policy_pb2.RollBackPolicyRequest, context: Any) -> policy_pb2.RollBackPolicyResponse | Awaitable[policy_pb2.RollBackPolicyResponse]: ...
    def ListPolicyRevisions(self, request: policy_pb2.ListPolicyRevisionsRequest, context: Any) -> policy_pb2.ListPolicyRevisionsResponse | Awaitable[policy_pb2.ListPolicyRevisionsResponse]: ...

def add_PolicyServiceServicer_to_server(
    servicer: PolicyServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
