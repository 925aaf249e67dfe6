"""Traces as a collector receives them: the spans of a request, whose they are, and what is not in them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from saegis.v1 import generation_pb2 as pb
from saegis_server.audit.verify import files_of, records
from tests.rpc.conftest import Stubs
from tests.rpc.harness import failure, running
from tests.rpc.test_logs import lines, recorded

TRACE, CALLER = "ab" * 16, "cd" * 8
POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: calm
serial: 7
revision: r1
allow: [{id: words, uses: [text]}]
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP endpoint: its URL, and the bodies that it has received."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sent(bodies: list[bytes]) -> list[Any]:
    """The spans in what a collector has received, by their beginning."""
    spans = [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


def told(span: Any) -> dict[str, Any]:
    """The attributes of a span."""
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages_within(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm/policy.yaml").write_text(POLICY, encoding="utf-8")
    settings: dict[str, Any] = {
        "policies": {"bundles": [tmp_path / "calm"]},
        "audit": {"directory": tmp_path / "log"},
    }
    request = pb.GenerateRequest(
        text="the river sleeps", request_id="mine", sampling=pb.SamplingParams(max_tokens=3, ignore_eos=True)
    )
    with collector() as (url, bodies):
        with (
            recorded() as log,
            running(traces=url, **settings) as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            stub = Stubs.on(channel).generation
            first = stub.Generate(request, metadata=(("traceparent", f"00-{TRACE}-{CALLER}-01"),))
            answer = stub.Generate(request)
            failure(
                lambda: stub.Generate(pb.GenerateRequest(text="sleeps", sampling=pb.SamplingParams(top_p=9)))
            )
        spans = sent(bodies)
    own = [span for span in spans if span.trace_id.hex() == TRACE]
    root, *stages = own
    assert (root.name, root.parent_span_id.hex()) == ("text_completion tiny", CALLER)
    assert [span.name for span in stages] == ["policy", "queue", "prefill", "decode"]
    assert {span.parent_span_id for span in stages} == {root.span_id}
    policy, queue, prefill, decode = stages
    assert root.start_time_unix_nano <= policy.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.start_time_unix_nano < decode.end_time_unix_nano <= root.end_time_unix_nano
    assert told(policy)["saegis.policy.allowed"] is True
    attributes = told(root)
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.request.model"] == attributes["gen_ai.response.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert (attributes["saegis.request.id"], attributes["rpc.grpc.status_code"]) == ("mine", "OK")
    others = [span for span in spans if span.trace_id.hex() != TRACE]
    other, failed = (span for span in others if not span.parent_span_id)
    assert other.trace_id != root.trace_id
    assert told(failed)["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    assert (first.receipt.trace_id, answer.receipt.trace_id) == (TRACE, other.trace_id.hex())
    ids = [line["trace_id"] for line in lines(log) if "method" in line]
    assert ids == [TRACE, other.trace_id.hex(), failed.trace_id.hex()]
    written = [line.record for line in records(files_of(tmp_path / "log"))]
    of_requests = [each["trace_id"] for each in written if each["kind"] in ("decision", "answer")]
    assert of_requests == [TRACE] * 2 + [other.trace_id.hex()] * 2
    assert told(root)["gen_ai.response.id"] == next(e["decision_id"] for e in written if e.get("decision_id"))
    assert not any(b"sleeps" in body for body in bodies)


def test_a_collector_that_is_not_there_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with running(traces="http://127.0.0.1:1/v1/traces") as server:
        with grpc.insecure_channel(server.target) as channel:
            answer = Stubs.on(channel).generation.Generate(
                pb.GenerateRequest(text="the", sampling=pb.SamplingParams(max_tokens=1))
            )
        began = time.monotonic()
    assert answer.usage.completion_tokens == 1
    assert time.monotonic() - began < 15.0
