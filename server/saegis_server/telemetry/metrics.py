"""The Prometheus series of the server, in a registry of their own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from saegis_server.engine.requests import RequestFinished

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Methods of the server's own contract; anything else is counted as one, so that labels stay few.
OTHER_METHOD = "other"


class Load(Protocol):
    """What the gauges read of the engine."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def used_tokens(self) -> int: ...
    @property
    def max_total_tokens(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...
    @property
    def steps(self) -> int: ...


class Metrics:
    """All series. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "saegis_requests",
            "RPCs that ended, by method and gRPC status.",
            ["method", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "saegis_request_duration_seconds",
            "Time from an RPC's arrival to its end.",
            ["method"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "saegis_time_to_first_token_seconds",
            "Time from a generation's arrival to its first token.",
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "saegis_inter_token_latency_seconds",
            "Mean time between the tokens of a generation, after its first, by sequence.",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "saegis_queue_seconds",
            "Time that a generation waited for a slot.",
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "saegis_prompt_tokens", "Tokens of prompts that were read.", registry=registry
        )
        self.generation_tokens = Counter("saegis_generation_tokens", "Tokens generated.", registry=registry)
        self.cached_tokens = Counter(
            "saegis_cached_tokens", "Tokens of prompts whose keys and values were reused.", registry=registry
        )
        self._steering_series()
        self.recompilations = Gauge(
            "saegis_recompilations",
            "Graphs compiled since the warm-up; more than 0 is a defect.",
            registry=registry,
        )
        self.serving = Gauge("saegis_serving", "1 while the server takes requests.", registry=registry)

    def _steering_series(self) -> None:
        registry = self.registry
        self.tokens_edited = Counter(
            "saegis_steering_tokens_edited",
            "Tokens whose activation was moved, by site.",
            ["site"],
            registry=registry,
        )
        self.bans_fired = Counter(
            "saegis_steering_bans_fired",
            "Times that a banned feature was active and was put out, by site.",
            ["site"],
            registry=registry,
        )
        self.watches = Counter(
            "saegis_feature_watches", "Watches of requests that ended, by site.", ["site"], registry=registry
        )
        self.largest_move = Histogram(
            "saegis_steering_relative_norm",
            "The largest move of a token by a steered request, over the norm of its activation, by site.",
            ["site"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            registry=registry,
        )

    def observe_load(self, read: Callable[[], Load]) -> None:
        """Let the gauges read the engine's load whenever they are scraped. Call it once."""

        def gauge(name: str, description: str, value: Callable[[Load], float]) -> None:
            Gauge(name, description, registry=self.registry).set_function(lambda: float(value(read())))

        gauge("saegis_requests_running", "Sequences that are being generated.", lambda load: load.running)
        gauge("saegis_requests_waiting", "Sequences that wait for a slot.", lambda load: load.waiting)
        gauge("saegis_kv_tokens_used", "Tokens held in the KV cache.", lambda load: load.used_tokens)
        gauge(
            "saegis_kv_tokens_max", "Tokens that the KV cache can hold.", lambda load: load.max_total_tokens
        )
        gauge(
            "saegis_generation_tokens_per_second",
            "Tokens generated a second, lately.",
            lambda load: load.tokens_per_second,
        )
        gauge("saegis_engine_steps", "Steps that the engine has run.", lambda load: load.steps)

    def count_rpc(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC that ended."""
        self.requests.labels(method, code).inc()
        self.request_seconds.labels(method).observe(seconds)

    def count_generation(self, ended: RequestFinished, tokens_by_sequence: Sequence[int]) -> None:
        """Count one generation that ran to its end; `tokens_by_sequence` counts each sequence's tokens."""
        usage, timings = ended.usage, ended.timings
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.generation_tokens.inc(usage.completion_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.queue_seconds.observe(timings.queue)
        if usage.completion_tokens:
            self.first_token_seconds.observe(timings.queue + timings.prefill)
        for tokens in tokens_by_sequence:
            if tokens > 1:
                self.inter_token_seconds.observe(timings.decode / (tokens - 1))
        for site in ended.receipt.sites:
            self.tokens_edited.labels(site.site).inc(site.tokens_edited)
            self.bans_fired.labels(site.site).inc(site.bans_fired)
            self.watches.labels(site.site).inc(site.watches)
            if site.tokens_edited:
                self.largest_move.labels(site.site).observe(site.largest_relative_norm)
