"""AuditService: finds what was decided on requests, and what was done for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from saegis.base import BaseClient
from saegis.messages import put
from saegis.rpc import rpc
from saegis.v1 import audit_pb2 as pb


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page of the answer to `search_audit`."""

    records: tuple[Mapping[str, Any], ...]
    """Decisions and answers, newest first, with the names that the log has; not verified."""
    next_page_token: str
    """The `page_token` of older records; empty if there are none. A page may have few records and a next one
    all the same, since a search looks at a bounded part of the log."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def _page(message: pb.SearchAuditResponse) -> AuditPage:
    return AuditPage(tuple(map(MessageToDict, message.records)), message.next_page_token)


class AuditMethods(BaseClient):
    """The RPCs of AuditService."""

    @rpc(lambda stubs: stubs.audit.SearchAudit, _page)
    def search_audit(
        self,
        *,
        tenant: str = "",
        rule: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        decision_id: str = "",
        denied: bool = False,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> pb.SearchAuditRequest:
        """Find decisions and answers in the audit log, newest first; what is left out excludes nothing.

        Args:
            tenant: whose requests.
            rule: a rule's id, alone or as "policy/rule", that denied the request or did anything for it.
            start_time, end_time: not before the one, and before the other. Both need a time zone.
            decision_id: the decision, by its whole id.
            denied: only denials.
            page_size: the most records, from 1 to 100; 0 means 20.
            page_token: where to go on, from the last page.
            timeout: the call's deadline in seconds.

        Raises ValueError for a time without a zone.
        """
        request = pb.SearchAuditRequest(
            tenant=tenant, rule=rule, decision_id=decision_id, denied=denied, page_token=page_token
        )
        put(request, "page_size", page_size)
        for name, time in (("start_time", start_time), ("end_time", end_time)):
            if time is not None:
                getattr(request, name).CopyFrom(_timestamp(name, time))
        return request


def _timestamp(name: str, time: datetime) -> Timestamp:
    """A time as a message. Raises ValueError for one without a zone."""
    if time.tzinfo is None:
        raise ValueError(f"{name} needs a time zone, such as datetime.now(UTC) has")
    made = Timestamp()
    made.FromDatetime(time)
    return made
