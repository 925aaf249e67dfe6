"""How features are used: the answer of `get_feature_usage`, and baselines to compare with later."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from saegis.messages import put, result
from saegis.steering import FeatureInfo, Phase
from saegis.v1 import feature_pb2 as pb

UsageSource = Literal["sampled", "watched"]
UsageOrder = Literal["fired", "mean", "max", "last_fired", "change"]

_FORMAT = "saegis-usage-baseline/1"
#: The largest file of a baseline, in bytes.
_LARGEST = 256 * 2**20


@dataclass(frozen=True, slots=True)
class UsageBaseline:
    """How often every feature of an SAE fired in a period, to compare with later."""

    sae_digest: str
    """SHA-256 of the SAE's weights, in hexadecimal."""
    start_time: datetime
    end_time: datetime
    prompt_tokens: int
    """How many tokens of prompts were looked at."""
    completion_tokens: int
    prompt_fired: tuple[int, ...]
    """At how many of them each feature was active, by its index."""
    completion_fired: tuple[int, ...]

    def save(self, path: str | Path) -> None:
        """Write it as JSON. Raises OSError."""
        document = {"format": _FORMAT, **{name: getattr(self, name) for name in self.__slots__}}
        Path(path).write_text(json.dumps(document, default=datetime.isoformat) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "UsageBaseline":
        """Read what `save` wrote. Raises OSError, and ValueError for a file that is no baseline."""
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"{path} is no baseline: it has more than {_LARGEST} bytes")
        try:
            read: dict[str, Any] = json.loads(data)
            if read.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            for name in ("start_time", "end_time"):
                read[name] = datetime.fromisoformat(read[name])
            for name in ("prompt_fired", "completion_fired"):
                read[name] = tuple(read[name])
            made = cls(**read)
            made.message()
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no baseline: {error}") from error
        return made

    def message(self) -> pb.UsageBaseline:
        """As a message of the contract. Raises TypeError and ValueError for numbers that do not fit."""
        message = pb.UsageBaseline()
        for name in ("sae_digest", "prompt_tokens", "completion_tokens", "prompt_fired", "completion_fired"):
            put(message, name, getattr(self, name), shown_as=f"baseline.{name}")
        message.start_time.FromDatetime(self.start_time)
        message.end_time.FromDatetime(self.end_time)
        return message


@dataclass(frozen=True, slots=True)
class FeatureUsage:
    """How one feature was used."""

    feature: FeatureInfo
    fired: int
    """At how many of the tokens that were looked at it was active."""
    tokens: int
    """At how many tokens it was looked at."""
    rate: float | None
    """The share of these at which it was active, from 0 to 1; None if there were none."""
    mean_activation: float | None
    """The mean activation where it was active, in feature units; None if that is not known."""
    max_activation: float | None
    last_fired_time: datetime | None
    """When it was active last; None if that is not known."""
    previous_rate: float | None
    """The rate of the baseline, or without one of the period before; None if there is none."""
    log_rate_ratio: float | None
    """The natural logarithm of the rate over the previous one."""
    sure_log_rate_ratio: float | None
    """By how much of that at least the rate has changed; 0 if that is not sure."""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The answer to `get_feature_usage`: the features, first those that the order puts first."""

    sae: str
    site: str
    sampled_every: int
    """One of how many steps was sampled; 1 if every token counts."""
    start_time: datetime
    end_time: datetime
    tokens: int | None
    """How many tokens were looked at; None if that differs between features."""
    fired_count: int
    """How many features fired at all."""
    features: tuple[FeatureUsage, ...]
    baseline: UsageBaseline | None
    """What was told, if that was asked for."""

    def __iter__(self) -> Iterator[FeatureUsage]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


def usage_request(
    *,
    sae: str,
    source: UsageSource,
    phase: Phase,
    order: UsageOrder,
    limit: int,
    window: float | timedelta | None,
    tenant_class: str,
    baseline: UsageBaseline | None,
    make_baseline: bool,
) -> pb.GetFeatureUsageRequest:
    """The request of `get_feature_usage`. Raises ValueError for words and numbers that do not fit."""
    request = pb.GetFeatureUsageRequest(sae=sae, tenant_class=tenant_class, make_baseline=make_baseline)
    words = (("source", "USAGE_SOURCE", source), ("phase", "PHASE", phase), ("order", "USAGE_ORDER", order))
    for name, prefix, given in words:
        put(request, name, _number(name, prefix, given))
    put(request, "limit", limit)
    if window is not None:
        span = window if isinstance(window, timedelta) else timedelta(seconds=window)
        request.window.FromTimedelta(span)
    if baseline is not None:
        request.baseline.CopyFrom(baseline.message())
    return request


def _number(name: str, prefix: str, given: str) -> int:
    described: Any = pb.GetFeatureUsageRequest.DESCRIPTOR.fields_by_name[name].enum_type
    values: Mapping[str, Any] = described.values_by_name
    known = {word.removeprefix(f"{prefix}_").lower(): value.number for word, value in values.items()}
    if given not in known or not known[given]:
        raise ValueError(
            f"{name} is {given!r}, not one of {', '.join(word for word in known if known[word])}"
        )
    return int(known[given])


def usage_report(message: pb.GetFeatureUsageResponse) -> UsageReport:
    """The answer to `get_feature_usage`."""
    baseline = None
    if message.HasField("baseline"):
        baseline = result(UsageBaseline, message.baseline, **_period(message.baseline))
    features = tuple(
        result(
            FeatureUsage,
            usage,
            feature=result(FeatureInfo, usage.feature),
            last_fired_time=_time(usage.last_fired_time) if usage.HasField("last_fired_time") else None,
        )
        for usage in message.features
    )
    return result(UsageReport, message, features=features, baseline=baseline, **_period(message))


def _period(message: pb.GetFeatureUsageResponse | pb.UsageBaseline) -> dict[str, datetime]:
    return {"start_time": _time(message.start_time), "end_time": _time(message.end_time)}


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
