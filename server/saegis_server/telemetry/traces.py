"""Traces: a span for each request, and within it one for its policies, its wait, its prompt and its answer.

They are sent by OpenTelemetry, which the extra saegis-server[traces] installs; without an endpoint it is not
loaded. Names are those of its conventions for generative AI, or begin with saegis. No span holds any text of
a request or an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saegis.version import __version__
from saegis_server.engine.api import RequestFinished

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | bool | int | float | tuple[str, ...]]
INSTALL = "pip install 'saegis-server[traces]'"
#: How long the end of the server waits for spans to be sent, in seconds.
EXPORT_SECONDS = 5.0

# All names that spans use.
OPERATION, PROVIDER = "gen_ai.operation.name", "gen_ai.provider.name"
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
RESPONSE_ID, FINISH_REASONS = "gen_ai.response.id", "gen_ai.response.finish_reasons"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
RPC_SYSTEM, RPC_METHOD, RPC_STATUS = "rpc.system", "rpc.method", "rpc.grpc.status_code"
REQUEST_ID, REASON = "saegis.request.id", "saegis.reason"
ALLOWED, REVISION, DIGEST = "saegis.policy.allowed", "saegis.policy.revision", "saegis.program.digest"
POLICY, QUEUE, PREFILL, DECODE = "policy", "queue", "prefill", "decode"
#: The provider of the model, by the conventions: who serves it.
OWN_NAME = "saegis"


class Trace:
    """The trace of one request. Safe to use from any thread; without a span it does nothing."""

    def __init__(self, tracer: Tracer | None = None, span: Span | None = None) -> None:
        self._tracer, self._span = tracer, span
        #: The trace's id in hexadecimal; empty if there is none.
        self.id = "" if span is None else f"{span.get_span_context().trace_id:032x}"

    def tell(self, attributes: Attributes, name: str = "") -> None:
        """Add to the request's span, as long as it has not ended; `name` becomes the span's."""
        if self._span is not None and self._span.is_recording():
            self._span.set_attributes(dict(attributes))
            if name:
                self._span.update_name(name)

    def stage(self, name: str, began: int, ended: int, attributes: Attributes | None = None) -> None:
        """Add a stage of the request as a span of its own; times are in nanoseconds since 1970."""
        if self._tracer is None or self._span is None:
            return
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(self._span)
        span = self._tracer.start_span(name, within, attributes=dict(attributes or {}), start_time=began)
        span.end(ended)

    def finished(self, done: RequestFinished) -> None:
        """Add what the engine has done for the request, which has just ended: its stages and its tokens."""
        ended = time.time_ns()
        stages = ((DECODE, done.timings.decode), (PREFILL, done.timings.prefill), (QUEUE, done.timings.queue))
        for name, seconds in stages:
            began = ended - round(seconds * 1e9)
            self.stage(name, began, ended)
            ended = began
        reasons = tuple(reason.value for reason in done.reasons if reason is not None)
        usage = {INPUT_TOKENS: done.usage.prompt_tokens, OUTPUT_TOKENS: done.usage.completion_tokens}
        self.tell({**usage, **({FINISH_REASONS: reasons} if reasons else {})})

    def end(self, code: str, reason: str = "") -> None:
        """End the request's span with a status of gRPC."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self.tell({RPC_STATUS: code, **({REASON: reason} if reason else {})})
        if code != "OK":
            self._span.set_status(StatusCode.ERROR, code)
        self._span.end()


#: What a request has that nobody traces.
UNTRACED = Trace()
#: The trace of the RPC that runs in this task.
current_trace: ContextVar[Trace] = ContextVar("current_trace", default=UNTRACED)


@dataclass(frozen=True, slots=True)
class Traces:
    """Begins traces, and sends them; without a tracer nothing is traced.

    close: sends what is left. It takes `EXPORT_SECONDS` or little more, and may be called twice.
    """

    tracer: Tracer | None = None
    close: Callable[[], None] = lambda: None

    @classmethod
    def to(cls, endpoint: str) -> Traces:
        """Traces that are sent to the URL of an OTLP endpoint (HTTP). Raises ValueError without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ValueError(f"traces need OpenTelemetry: {INSTALL}") from error
        return cls.through(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS))

    @classmethod
    def through(cls, exporter: SpanExporter) -> Traces:
        """Traces that an exporter sends, from a thread of its own."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        told = Resource.create({"service.name": OWN_NAME, "service.version": __version__})
        provider = TracerProvider(resource=told, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider.get_tracer("saegis_server", __version__), provider.shutdown)

    def begin(self, method: str, metadata: Mapping[str, str]) -> Trace:
        """The trace of an RPC: that of the caller if the metadata has a `traceparent`, or a new one."""
        if self.tracer is None:
            return UNTRACED
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = method.removeprefix("/")
        around = TraceContextTextMapPropagator().extract(metadata)
        told = {RPC_SYSTEM: "grpc", RPC_METHOD: name}
        return Trace(self.tracer, self.tracer.start_span(name, around, SpanKind.SERVER, told))
