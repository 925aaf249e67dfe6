from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from saegis.v1 import audit_pb2

class AuditServiceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    SearchAudit: grpc.UnaryUnaryMultiCallable[audit_pb2.SearchAuditRequest, audit_pb2.SearchAuditResponse]

# Exists for type checkers only: cast AuditServiceStub(channel) to it.

class AuditServiceAsyncStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    SearchAudit: grpc.aio.UnaryUnaryMultiCallable[audit_pb2.SearchAuditRequest, audit_pb2.SearchAuditResponse]

class AuditServiceServicer:
    def SearchAudit(self, request: audit_pb2.SearchAuditRequest, context: Any) -> audit_pb2.SearchAuditResponse | Awaitable[audit_pb2.SearchAuditResponse]: ...

def add_AuditServiceServicer_to_server(
    servicer: AuditServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
