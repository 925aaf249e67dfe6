"""The answer of GetFeatureUsage: which features fire most, and which fire more or less than before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from saegis.v1 import feature_pb2 as pb
from saegis.v1 import steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.engine.counts import Used
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.problems import PreconditionError
from saegis_server.sae.catalog import FoundFeature, LoadedSAE
from saegis_server.telemetry.features import FeatureSeries, FeatureUse
from saegis_server.telemetry.tenants import TenantClasses
from saegis_server.telemetry.usage import Change, Period, UsageBook, change

#: Of the arrays of `Used`, those of prompts and those of answers.
_PHASES = {
    steering_pb2.PHASE_UNSPECIFIED: slice(0, 2),
    steering_pb2.PHASE_ALL: slice(0, 2),
    steering_pb2.PHASE_PROMPT: slice(0, 1),
    steering_pb2.PHASE_COMPLETION: slice(1, 2),
}
#: The longest window, in seconds: ten years.
LONGEST_WINDOW = 10 * 366 * 86_400


class _Rates(NamedTuple):
    """At how many tokens M features fired, int64 [M], of how many."""

    fired: NDArray[np.int64]
    tokens: int


def check_usage(request: pb.GetFeatureUsageRequest, tenants: TenantClasses) -> None:
    """Raise FieldError for what is not known of the features that are asked for."""
    if request.phase not in _PHASES:
        raise FieldError("phase", f"is unknown: {request.phase}")
    for field in ("source", "order"):
        known = pb.DESCRIPTOR.enum_types_by_name[f"Usage{field.title()}"].values_by_number
        if getattr(request, field) not in known:
            raise FieldError(field, f"is unknown: {getattr(request, field)}")
    if request.HasField("window") and not 0.0 < _window(request) <= LONGEST_WINDOW:
        raise FieldError(
            "window", f"must be above 0 and at most {LONGEST_WINDOW} s, not {_window(request):g}"
        )
    if request.source == pb.USAGE_SOURCE_WATCHED:
        _check_watched(request, tenants)
    elif request.tenant_class:
        raise FieldError("tenant_class", "is known of watched features alone")
    elif request.order == pb.USAGE_ORDER_CHANGE and not (
        request.HasField("window") or request.HasField("baseline")
    ):
        raise FieldError("order", "needs a window or a baseline: with what are rates to be compared?")


def _check_watched(request: pb.GetFeatureUsageRequest, tenants: TenantClasses) -> None:
    for described, _ in request.ListFields():
        if described.name in ("window", "baseline", "make_baseline"):
            description = "is for sampled features; Prometheus has the past of watched ones"
            raise FieldError(described.name, description)
    if request.order not in (pb.USAGE_ORDER_UNSPECIFIED, pb.USAGE_ORDER_FIRED):
        raise FieldError("order", "watched features are ordered by how often they fired")
    if request.tenant_class and request.tenant_class not in tenants.names:
        raise FieldError("tenant_class", f"must be one of {', '.join(tenants.names)}")


def _window(request: pb.GetFeatureUsageRequest) -> float:
    return request.window.seconds + request.window.nanos / 1e9


def sampled_usage(
    request: pb.GetFeatureUsageRequest, loaded: LoadedSAE, book: UsageBook | None, limit: int
) -> pb.GetFeatureUsageResponse:
    """How all features of an SAE were used, as far as samples tell.

    Raises FieldError for a baseline of another SAE, and PreconditionError where nothing is counted.
    """
    if book is None:
        raise PreconditionError(
            "USAGE_NOT_COUNTED", loaded.id, "this server counts watched features alone: see --usage-every"
        )
    window = _window(request) if request.HasField("window") else None
    period, before = book.period(loaded.id, window, cut=request.make_baseline)
    told, phases = _answer(loaded, period, book.every), _PHASES[request.phase]
    used, now = period.used, _rates(period.used, phases)
    previous = None if before is None else _rates(before.used, phases)
    if request.HasField("baseline"):
        previous = _baseline_rates(request.baseline, loaded, phases)
    if previous is not None and not previous.tokens:
        previous = None
    changed = None if previous is None else change(now.fired, now.tokens, previous.fired, previous.tokens)
    total, largest = used.total[phases].sum(0), used.largest[phases].max(0)
    last = used.last[phases].max(0)
    told.tokens, told.fired_count = now.tokens, int((now.fired > 0).sum())
    for index in _ordered(request.order, now.fired, total, largest, last, changed)[:limit].tolist():
        feature = _feature(loaded, index, int(now.fired[index]), now.tokens)
        if now.fired[index]:
            feature.mean_activation = float(total[index] / now.fired[index])
            feature.max_activation = float(largest[index])
        if last[index] > 0.0:
            feature.last_fired_time.CopyFrom(_timestamp(last[index]))
        if previous is not None and changed is not None:
            feature.previous_rate = float(previous.fired[index] / previous.tokens)
            feature.log_rate_ratio = float(changed.log_ratio[index])
            feature.sure_log_rate_ratio = float(changed.sure[index])
        told.features.append(feature)
    if request.make_baseline:
        told.baseline.CopyFrom(_baseline(period, loaded))
    return told


def _answer(loaded: LoadedSAE, period: Period, every: int) -> pb.GetFeatureUsageResponse:
    return pb.GetFeatureUsageResponse(
        sae=loaded.id,
        site=str(loaded.site),
        sampled_every=every,
        start_time=_timestamp(period.start),
        end_time=_timestamp(period.end),
    )


def _rates(used: Used, phases: slice) -> _Rates:
    return _Rates(used.fired[phases].sum(0), int(used.tokens[phases].sum()))


def _ordered(
    order: int,
    fired: NDArray[np.int64],
    total: NDArray[np.float64],
    largest: NDArray[np.float32],
    last: NDArray[np.float64],
    changed: Change | None,
) -> NDArray[np.int64]:
    """The features that are told, in their order; of equal ones that with the lower index first."""
    if order == pb.USAGE_ORDER_CHANGE:
        if changed is None:
            return np.zeros(0, np.int64)
        sure = np.flatnonzero(changed.sure)
        return sure[np.argsort(-np.abs(changed.sure[sure]), kind="stable")]
    active = np.flatnonzero(fired)
    keys: dict[int, NDArray[np.float64]] = {
        pb.USAGE_ORDER_MEAN: total / np.maximum(fired, 1),
        pb.USAGE_ORDER_MAX: largest.astype(np.float64),
        pb.USAGE_ORDER_LAST_FIRED: last,
    }
    key = keys.get(order, fired.astype(np.float64))
    return active[np.argsort(-key[active], kind="stable")]


def _baseline(period: Period, loaded: LoadedSAE) -> pb.UsageBaseline:
    used = period.used
    return pb.UsageBaseline(
        sae_digest=loaded.sae.digest,
        start_time=_timestamp(period.start),
        end_time=_timestamp(period.end),
        prompt_tokens=int(used.tokens[0]),
        completion_tokens=int(used.tokens[1]),
        prompt_fired=used.fired[0].tolist(),
        completion_fired=used.fired[1].tolist(),
    )


def _baseline_rates(baseline: pb.UsageBaseline, loaded: LoadedSAE, phases: slice) -> _Rates:
    """The rates of a baseline. Raises FieldError for one of another SAE, or that nothing can have counted."""
    sae = loaded.sae
    if baseline.sae_digest != sae.digest:
        description = f"is {baseline.sae_digest[:16] or 'empty'}; that of {loaded.id} is {sae.digest[:16]}"
        raise FieldError("baseline.sae_digest", description)
    tokens = [baseline.prompt_tokens, baseline.completion_tokens]
    by_phase = (baseline.prompt_fired, baseline.completion_fired)
    for name, most, fired in zip(("prompt", "completion"), tokens, by_phase, strict=True):
        if len(fired) != sae.features:
            description = f"has {len(fired)} numbers; {loaded.id} has {sae.features} features"
            raise FieldError(f"baseline.{name}_fired", description)
        if most >= 2**53 or max(fired) > most:
            raise FieldError(f"baseline.{name}_tokens", "must be below 2^53, and no feature fires at more")
    fired = np.array([list(each) for each in by_phase][phases], dtype=np.int64).sum(0)
    return _Rates(fired, sum(tokens[phases]))


def watched_usage(
    request: pb.GetFeatureUsageRequest,
    loaded: LoadedSAE,
    series: FeatureSeries,
    started: float,
    now: float,
    limit: int,
) -> pb.GetFeatureUsageResponse:
    """How often the watched features of an SAE fired since the server `started`, at every token."""
    phases = ("prompt", "completion")[_PHASES[request.phase]]
    uses = series.used(str(loaded.site), loaded.id, phases, request.tenant_class)
    told = pb.GetFeatureUsageResponse(
        sae=loaded.id,
        site=str(loaded.site),
        sampled_every=1,
        start_time=_timestamp(started),
        end_time=_timestamp(now),
        fired_count=sum(1 for use in uses.values() if use.fired),
    )
    active = [(index, use) for index, use in uses.items() if use.fired]
    for index, use in sorted(active, key=lambda each: (-each[1].fired, each[0]))[:limit]:
        told.features.append(_watched(loaded, index, use))
    return told


def _watched(loaded: LoadedSAE, index: int, use: FeatureUse) -> pb.FeatureUsage:
    feature = _feature(loaded, index, use.fired, use.tokens)
    maximum = feature.feature.max_activation
    if use.strength is not None and maximum > 0.0:
        feature.mean_activation = use.strength * maximum / use.fired
    return feature


def _feature(loaded: LoadedSAE, index: int, fired: int, tokens: int) -> pb.FeatureUsage:
    found = FoundFeature(loaded, index, loaded.labels.get(index))
    rate = fired / tokens if tokens else None
    return pb.FeatureUsage(feature=convert.feature(found), fired=fired, tokens=tokens, rate=rate)


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp
