"""AuditService: finds what was decided on requests, and what was done for them."""

from datetime import UTC, datetime

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from saegis.v1 import audit_pb2 as pb
from saegis.v1 import audit_pb2_grpc
from saegis_server.audit.search import Place, Wanted, find
from saegis_server.engine.api import FieldError
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.services.shared import Context, Servicer
from saegis_server.rpc.wire.problems import PreconditionError

#: How many records an answer has at most, and where nothing is said.
MOST_RECORDS, FEW_RECORDS = 100, 20


@serves(pb.DESCRIPTOR.services_by_name["AuditService"])
class AuditServicer(Servicer, audit_pb2_grpc.AuditServiceServicer):
    """Searches the audit log of this server."""

    @needs(Role.ADMINISTER)
    async def SearchAudit(self, request: pb.SearchAuditRequest, context: Context) -> pb.SearchAuditResponse:
        """The decisions and answers that fit, newest first."""
        if self.services.governor.audit is None:
            raise PreconditionError(
                "NO_AUDIT",
                "audit",
                "this server keeps no audit log: start it with saegis serve --audit FOLDER",
            )
        if request.page_size > MOST_RECORDS:
            raise FieldError("page_size", f"at most {MOST_RECORDS}, not {request.page_size}")
        wanted = Wanted(
            request.tenant,
            request.rule,
            request.decision_id,
            _time(request.start_time, "start_time") if request.HasField("start_time") else None,
            _time(request.end_time, "end_time") if request.HasField("end_time") else None,
            request.denied,
        )
        before = None
        if request.page_token:
            try:
                before = Place.parse(request.page_token)
            except ValueError:
                raise FieldError("page_token", "is none that a search has told") from None
        most, directory = request.page_size or FEW_RECORDS, self.services.governor.audit.directory

        def search() -> pb.SearchAuditResponse:
            found = find(directory, wanted, most, before)
            return pb.SearchAuditResponse(
                records=[ParseDict(dict(record), Struct()) for record in found.records],
                next_page_token=str(found.rest or ""),
            )

        return await self.services.in_thread(search)


def _time(told: Timestamp, field: str) -> datetime:
    """A time of a request. Raises FieldError."""
    try:
        return told.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise FieldError(field, "is no time between the years 1 and 9999") from error
