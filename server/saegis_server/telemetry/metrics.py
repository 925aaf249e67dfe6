"""The server's Prometheus series, in their own registry."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from saegis_server.engine.api import EngineStats, FinishReason, RequestFinished
from saegis_server.telemetry.features import FeatureSeries
from saegis_server.telemetry.rules import RuleSeries
from saegis_server.telemetry.tenants import TenantClasses

# A series beside every counter that says when it was made is of no use, and doubles their number.
disable_created_metrics()  # type: ignore[no-untyped-call]

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STALL_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MOVE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_ACTIVE_BUCKETS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_ERROR_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
#: The gauges of the engine's load.
_LOAD: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("saegis_requests_running", "Sequences that are being generated.", lambda load: load.running),
    ("saegis_requests_waiting", "Sequences that wait for a slot.", lambda load: load.waiting),
    ("saegis_kv_tokens_used", "Tokens held in the KV cache.", lambda load: load.used_tokens),
    ("saegis_kv_tokens_max", "Tokens that the KV cache can hold.", lambda load: load.max_total_tokens),
    (
        "saegis_generation_tokens_per_second",
        "Tokens generated a second, lately.",
        lambda load: load.tokens_per_second,
    ),
    ("saegis_engine_steps", "Steps that the engine has run.", lambda load: load.steps),
)
#: What an accelerator has, where there is one.
_DEVICE: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    (
        "saegis_device_memory_used_bytes",
        "Memory of the accelerator in use.",
        lambda load: load.device_bytes or 0,
    ),
    (
        "saegis_device_memory_bytes",
        "Memory that the accelerator has.",
        lambda load: load.device_bytes_max or 0,
    ),
)
#: How an answer ends beside the engine's reasons: its client went, a rule refused its prompt, a text was
#: scored rather than written; anything else is an error.
_FINISHES = (*map(str, FinishReason), "cancelled", "refused", "scored")
_ERROR = "error"
#: How a label tells a truth, in the order of False and True.
_TRUTHS = ("false", "true")
#: The label for all methods outside the server's contract, so that there are few labels.
OTHER_METHOD = "other"
#: What the methods begin with whose duration is told for each.
_WRITING = "/saegis.v1.GenerationService/"
#: The kinds of error that can keep a bundle from coming in force; see policy.errors.
POLICY_FAILURES = (
    "bundle",
    "syntax",
    "schema",
    "signature",
    "serial",
    "compile",
    "cases",
    "conflict",
    "unmatched",
    "state",
)


class _Reloads(NamedTuple):
    """The series of bundles that were to come in force."""

    successful: Gauge
    time: Gauge
    failures: Counter


class Metrics:
    """All series. Safe to use from any thread."""

    def __init__(self, tenants: TenantClasses | None = None) -> None:
        self.registry = CollectorRegistry()
        self.tenants = tenants or TenantClasses()
        ProcessCollector(registry=self.registry)
        self.rules = RuleSeries(self.tenants)
        self.features = FeatureSeries(self.tenants)
        for series in (self.rules, self.features):
            self.registry.register(series)
        self._request_series()
        self._answer_series()
        self.sae_info = self._gauge(
            "saegis_sae_info", "1 for each SAE that is served.", "sae", "site", "features"
        )
        self._steering_series()
        self._policy_series()
        self._identity_series()
        self._health_series()

    def _request_series(self) -> None:
        self.requests = self._counter(
            "saegis_requests", "RPCs that ended, by method and gRPC status.", "method", "code"
        )
        self.request_seconds = self._histogram(
            "saegis_request_duration_seconds",
            "Time from an RPC's arrival to its end, of those that write or score texts, and all others.",
            _REQUEST_BUCKETS,
            "method",
        )
        self.first_token_seconds = self._histogram(
            "saegis_time_to_first_token_seconds",
            "Time from a generation's arrival to its first token.",
            _REQUEST_BUCKETS,
        )
        self.inter_token_seconds = self._histogram(
            "saegis_inter_token_latency_seconds",
            "Mean time between an answer's tokens, after its first, by whether rows could steer it.",
            _TOKEN_BUCKETS,
            "steered",
        )
        for steered in _TRUTHS:
            self.inter_token_seconds.labels(steered)
        self.queue_seconds = self._histogram(
            "saegis_queue_seconds", "Time that a generation waited for a slot.", _REQUEST_BUCKETS
        )

    def _answer_series(self) -> None:
        self.answers = self._counter(
            "saegis_answers",
            "Answers that ended, by how; those of one request each by itself.",
            "finish_reason",
        )
        for reason in (*_FINISHES, _ERROR):
            self.answers.labels(reason)
        self.prompt_tokens = self._counter(
            "saegis_prompt_tokens",
            "Tokens of prompts that were read, of generations that ended, by tenant class.",
            "tenant_class",
        )
        self.generation_tokens = self._counter(
            "saegis_generation_tokens", "Tokens generated, by tenant class.", "tenant_class"
        )
        for tenant_class in self.tenants.names:
            self.prompt_tokens.labels(tenant_class)
            self.generation_tokens.labels(tenant_class)
        self.cached_tokens = self._counter(
            "saegis_cached_tokens", "Tokens of prompts whose keys and values were reused."
        )

    def _policy_series(self) -> None:
        self.audit_records = self._counter(
            "saegis_audit_records", "Records that are in the audit log, by kind.", "kind"
        )
        self.audit_errors = self._counter(
            "saegis_audit_errors", "Records that could not be written to the audit log."
        )
        self.policy_info = self._gauge(
            "saegis_policy_info", "1 for each policy revision in force.", "policy", "revision"
        )
        self.policy_decisions = self._counter(
            "saegis_policy_decisions",
            "Decisions on requests, by policy, decision (allow, deny) and mode (enforce, audit, shadow).",
            "policy",
            "decision",
            "mode",
        )
        self._reloads: _Reloads | None = None

    def _health_series(self) -> None:
        self.recompilations = self._gauge(
            "saegis_recompilations", "Graphs compiled since the warm-up; more than 0 is a defect."
        )
        self.serving = self._gauge("saegis_serving", "1 while the server takes requests.")
        self.largest_stall = self._gauge(
            "saegis_event_loop_stall_seconds_max",
            "The longest time, since the start, for which the event loop did not answer.",
        )
        self.stalls = self._histogram(
            "saegis_event_loop_stall_seconds",
            "For how long the event loop did not answer, asked twenty times a second.",
            _STALL_BUCKETS,
        )
        self._largest = 0.0

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, registry=self.registry)

    def _reading(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge that is read whenever it is scraped."""
        self._gauge(name, description).set_function(lambda: float(read()))

    def _histogram(self, name: str, description: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, description, labels, registry=self.registry, buckets=buckets)

    def observe_stall(self, seconds: float) -> None:
        """Note for how long the event loop did not answer. Only one thread may call it."""
        self.stalls.observe(seconds)
        if seconds > self._largest:
            self._largest = seconds
            self.largest_stall.set(seconds)

    def observe_work(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Let the gauges read what the server works on and keeps: `read` returns numbers by name. Call it
        once."""
        for name, description in (
            ("saegis_requests_inside", "RPCs that run or wait."),
            ("saegis_request_bytes_held", "Bytes of requests that are held."),
            ("saegis_admission_waiting", "Requests that wait for a thread before they can run."),
            ("saegis_heavy_work_waiting", "Requests for heavy work that wait for a thread."),
            ("saegis_pictures_waiting", "Requests whose pictures wait to be decoded."),
            ("saegis_directions_kept", "Directions that tenants have uploaded."),
            ("saegis_direction_bytes_kept", "Bytes of the numbers of directions that tenants have uploaded."),
        ):
            self._reading(name, description, lambda name=name: read()[name])  # type: ignore[misc]

    def _steering_series(self) -> None:
        self.tokens_edited = self._counter(
            "saegis_steering_tokens_edited", "Tokens whose activation was moved, by site.", "site"
        )
        self.bans_fired = self._counter(
            "saegis_steering_bans_fired",
            "Times that a banned feature was active and was put out, by site.",
            "site",
        )
        self.watches = self._counter(
            "saegis_feature_watches", "Watches of requests that ended, by site.", "site"
        )
        self.largest_move = self._histogram(
            "saegis_steering_relative_norm",
            "The largest move of a token by a steered request, over the norm of its activation, by site.",
            _MOVE_BUCKETS,
            "site",
        )
        self.active_features = self._histogram(
            "saegis_sae_active_features",
            "Features that are active at a token, of prompts that are sampled, as the model has them.",
            _ACTIVE_BUCKETS,
            "sae",
            "site",
        )
        self.reconstruction_error = self._histogram(
            "saegis_sae_reconstruction_error_ratio",
            "What an SAE leaves out of an activation, ‖x − x̂‖/‖x‖ by token, of prompts that are sampled.",
            _ERROR_BUCKETS,
            "sae",
            "site",
        )

    def _identity_series(self) -> None:
        self.authentication_failures = self._counter(
            "saegis_authentication_failures",
            "RPCs whose caller nobody knows, by what failed: missing, token, certificate.",
            "reason",
        )
        self.identities_stale = self._gauge(
            "saegis_identities_stale",
            "1 while the file of identities cannot be read and the last good ones are in force.",
        )
        self.open_to_all = self._gauge("saegis_open_to_all", "1 where the server asks nobody who they are.")

    def show_policies(self, before: Set[tuple[str, str]], now: Set[tuple[str, str]]) -> None:
        """Show the policies in force now, each by name and revision, in place of those before."""
        for name, revision in now:
            self.policy_info.labels(name, revision).set(1)
        for name, revision in before - now:
            self.policy_info.remove(name, revision)

    def policies_loaded(self) -> None:
        """Note that a bundle came in force."""
        reloads = self._policy_reloads()
        reloads.successful.set(1)
        reloads.time.set_to_current_time()

    def policy_failed(self, kind: str) -> None:
        """Count a bundle that did not come in force; `kind` is that of its error."""
        reloads = self._policy_reloads()
        reloads.successful.set(0)
        reloads.failures.labels(kind).inc()

    def _policy_reloads(self) -> "_Reloads":
        """The series of bundles, which are there once there is one: without any, nothing has failed."""
        if self._reloads is None:
            self._reloads = _Reloads(
                self._gauge(
                    "saegis_policy_last_reload_successful",
                    "Whether the last bundle that was to come in force did.",
                ),
                self._gauge(
                    "saegis_policy_last_reload_success_timestamp_seconds",
                    "When a bundle last came in force, in Unix time.",
                ),
                self._counter(
                    "saegis_policy_reload_failures",
                    "Bundles that did not come in force, by what failed.",
                    "kind",
                ),
            )
            for kind in POLICY_FAILURES:
                self._reloads.failures.labels(kind)
        return self._reloads

    def observe_audit(
        self, waiting: Callable[[], int], last: Callable[[], int], is_failing: Callable[[], bool]
    ) -> None:
        """Let the gauges read how many records wait, the last one's number, and failures. Call it once."""
        self._reading(
            "saegis_audit_available",
            "0 while the audit log cannot be written, and requests that need it are refused.",
            lambda: not is_failing(),
        )
        self._reading(
            "saegis_audit_buffer_records", "Records that wait to be written to the audit log.", waiting
        )
        self._reading(
            "saegis_audit_last_record",
            "The number of the newest record of the audit log; a fall means that its end was cut off.",
            last,
        )

    def observe_load(self, read: Callable[[], EngineStats]) -> None:
        """Let the gauges read the engine's load whenever they are scraped. Call it once."""
        with_device = _LOAD if read().device_bytes is None else (*_LOAD, *_DEVICE)
        for name, description, value in with_device:
            self._reading(name, description, lambda value=value: value(read()))  # type: ignore[misc]
        self.recompilations.set_function(lambda: float(read().recompilations))

    def count_audit_record(self, kind: str) -> None:
        """Count one record that is in the audit log."""
        self.audit_records.labels(kind).inc()

    def count_audit_error(self) -> None:
        """Count one record that could not be written."""
        self.audit_errors.inc()

    def count_rpc(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC that ended."""
        self.requests.labels(method, code).inc()
        written = method if method.startswith(_WRITING) else OTHER_METHOD
        self.request_seconds.labels(written).observe(seconds)

    def count_authentication_failure(self, reason: str) -> None:
        """Count one RPC whose caller nobody knows."""
        self.authentication_failures.labels(reason).inc()

    def show_build(self, **facts: str) -> None:
        """Tell what runs: versions, by label. Call it once."""
        self._gauge("saegis_build_info", "1; what runs, in its labels.", *facts).labels(**facts).set(1)

    def show_model(self, **facts: str) -> None:
        """Tell what is served: the model, by label. Call it once."""
        self._gauge("saegis_model_info", "1; the model, in its labels.", *facts).labels(**facts).set(1)

    def show_sae(self, sae: str, site: str, features: int) -> None:
        """Tell of an SAE that is served."""
        self.sae_info.labels(sae, site, str(features)).set(1)

    def observe_sae(self, sae: str, site: str, active: Sequence[float], errors: Sequence[float]) -> None:
        """Note of tokens that were sampled how many features were active, and what the SAE left out."""
        for histogram, values in ((self.active_features, active), (self.reconstruction_error, errors)):
            for value in values:
                histogram.labels(sae, site).observe(value)

    def count_answers(self, reasons: Sequence[str]) -> None:
        """Count the answers of one request, by how each of them ended."""
        for reason in reasons:
            self.answers.labels(reason if reason in _FINISHES else _ERROR).inc()

    def count_generation(self, ended: RequestFinished, tenant: str) -> None:
        """Count one generation that the engine had, however it ended."""
        usage, timings, tenant_class = ended.usage, ended.timings, self.tenants.of(tenant)
        self.prompt_tokens.labels(tenant_class).inc(ended.prompt_read)
        self.generation_tokens.labels(tenant_class).inc(usage.completion_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.queue_seconds.observe(timings.queue)
        if usage.completion_tokens:
            self.first_token_seconds.observe(timings.queue + timings.prefill)
        rows = any(site.edits or site.rules or site.bans for site in ended.receipt.sites)
        between = self.inter_token_seconds.labels(_TRUTHS[rows])
        for tokens in ended.tokens:
            if tokens > 1:
                between.observe(timings.decode / (tokens - 1))
        for report in ended.receipt.sites:
            site = str(report.site)
            self.tokens_edited.labels(site).inc(report.tokens_edited)
            self.bans_fired.labels(site).inc(report.bans_fired)
            self.watches.labels(site).inc(report.watches)
            if report.tokens_edited:
                self.largest_move.labels(site).observe(report.largest_relative_norm)
