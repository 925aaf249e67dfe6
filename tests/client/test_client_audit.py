"""The clients' search of the audit log, there and back over a socket, and on a server that keeps one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct

import saegis
from saegis.v1 import audit_pb2 as pb
from tests.client.conftest import Caller
from tests.client.loopback import Loopback
from tests.http.guarded import guarded, token

TIME = datetime(2026, 11, 24, 12, 30, 15, 250000, tzinfo=UTC)


def test_search_audit(loopback: Loopback, call: Caller) -> None:
    record = Struct()
    record.update({"kind": "decision", "denied": True, "serial": 7, "rules": ["a/b"], "share": 0.5})
    loopback.answers["SearchAudit"] = pb.SearchAuditResponse(records=[record], next_page_token="t")
    page = call("search_audit", tenant="us", rule="a/b", start_time=TIME, denied=True, page_size=3)
    assert isinstance(page, saegis.AuditPage)
    assert list(page) == [{"kind": "decision", "denied": True, "serial": 7, "rules": ["a/b"], "share": 0.5}]
    assert (len(page), page.next_page_token) == (1, "t")
    wanted = pb.SearchAuditRequest(tenant="us", rule="a/b", denied=True, page_size=3)
    wanted.start_time.FromDatetime(TIME)
    assert loopback.received[0].request == wanted
    with pytest.raises(ValueError, match="end_time needs a time zone"):
        call("search_audit", end_time=TIME.replace(tzinfo=None))
    with pytest.raises(ValueError, match="page_size"):
        call("search_audit", page_size=-1)


def test_a_denial_is_found_in_the_log_of_a_server(tmp_path: Path) -> None:
    forbidden = saegis.clamp(saegis.feature(20, sae="first"), 1.0)
    with guarded(tmp_path) as server, saegis.Client(server.target, token=token("app", "free")) as app:
        app.generate("the river", max_tokens=1)
        with pytest.raises(saegis.PermissionDenied):
            app.generate("the river", max_tokens=1, steering=[forbidden])
        with pytest.raises(saegis.PermissionDenied, match="administer"):
            app.search_audit()
        with saegis.Client(server.target, token=token("owner", "free")) as owner:
            (denial,) = owner.search_audit(tenant="free", denied=True)
            assert denial["kind"] == "decision"
            whole = owner.search_audit(page_size=2)
            assert len(whole) == 2
            rest = owner.search_audit(page_token=whole.next_page_token)
            assert denial in [*whole, *rest]
            assert not len(owner.search_audit(start_time=datetime.now(UTC) + timedelta(days=1)))
