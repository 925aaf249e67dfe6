import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from saegis.v1 import prompt_pb2 as _prompt_pb2
from saegis.v1 import steering_pb2 as _steering_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UsageSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_SOURCE_UNSPECIFIED: _ClassVar[UsageSource]
    USAGE_SOURCE_SAMPLED: _ClassVar[UsageSource]
    USAGE_SOURCE_WATCHED: _ClassVar[UsageSource]

class UsageOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_ORDER_UNSPECIFIED: _ClassVar[UsageOrder]
    USAGE_ORDER_FIRED: _ClassVar[UsageOrder]
    USAGE_ORDER_MEAN: _ClassVar[UsageOrder]
    USAGE_ORDER_MAX: _ClassVar[UsageOrder]
    USAGE_ORDER_LAST_FIRED: _ClassVar[UsageOrder]
    USAGE_ORDER_CHANGE: _ClassVar[UsageOrder]
USAGE_SOURCE_UNSPECIFIED: UsageSource
USAGE_SOURCE_SAMPLED: UsageSource
USAGE_SOURCE_WATCHED: UsageSource
USAGE_ORDER_UNSPECIFIED: UsageOrder
USAGE_ORDER_FIRED: UsageOrder
USAGE_ORDER_MEAN: UsageOrder
USAGE_ORDER_MAX: UsageOrder
USAGE_ORDER_LAST_FIRED: UsageOrder
USAGE_ORDER_CHANGE: UsageOrder

class Feature(_message.Message):
    __slots__ = ("sae", "index", "site", "label", "max_activation", "density", "subjects", "languages", "precision", "recall", "harmful", "precision_by_language")
    class RecallEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PrecisionByLanguageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SAE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    HARMFUL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_BY_LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    sae: str
    index: int
    site: str
    label: str
    max_activation: float
    density: float
    subjects: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    precision: float
    recall: _containers.ScalarMap[str, float]
    harmful: bool
    precision_by_language: _containers.ScalarMap[str, float]
    def __init__(self, sae: _Optional[str] = ..., index: _Optional[int] = ..., site: _Optional[str] = ..., label: _Optional[str] = ..., max_activation: _Optional[float] = ..., density: _Optional[float] = ..., subjects: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., precision: _Optional[float] = ..., recall: _Optional[_Mapping[str, float]] = ..., harmful: _Optional[bool] = ..., precision_by_language: _Optional[_Mapping[str, float]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("text", "token_ids", "chat", "sae", "site", "top_k", "features", "long_text")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LONG_TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _prompt_pb2.TokenIds
    chat: _prompt_pb2.Chat
    sae: str
    site: str
    top_k: int
    features: _containers.RepeatedCompositeFieldContainer[_steering_pb2.FeatureRef]
    long_text: bool
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[_prompt_pb2.TokenIds, _Mapping[str, object]]] = ..., chat: _Optional[_Union[_prompt_pb2.Chat, _Mapping[str, object]]] = ..., sae: _Optional[str] = ..., site: _Optional[str] = ..., top_k: _Optional[int] = ..., features: _Optional[_Iterable[_Union[_steering_pb2.FeatureRef, _Mapping[str, object]]]] = ..., long_text: _Optional[bool] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("sae", "site", "tokens", "values", "windows", "pictures")
    SAE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    sae: str
    site: str
    tokens: _containers.RepeatedCompositeFieldContainer[TokenFeatures]
    values: _containers.RepeatedCompositeFieldContainer[FeatureValues]
    windows: int
    pictures: _containers.RepeatedCompositeFieldContainer[PictureTokens]
    def __init__(self, sae: _Optional[str] = ..., site: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[TokenFeatures, _Mapping[str, object]]]] = ..., values: _Optional[_Iterable[_Union[FeatureValues, _Mapping[str, object]]]] = ..., windows: _Optional[int] = ..., pictures: _Optional[_Iterable[_Union[PictureTokens, _Mapping[str, object]]]] = ...) -> None: ...

class PictureTokens(_message.Message):
    __slots__ = ("digest", "width", "height", "first_token", "token_count", "grids")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    GRIDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    width: int
    height: int
    first_token: int
    token_count: int
    grids: _containers.RepeatedCompositeFieldContainer[PictureGrid]
    def __init__(self, digest: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., first_token: _Optional[int] = ..., token_count: _Optional[int] = ..., grids: _Optional[_Iterable[_Union[PictureGrid, _Mapping[str, object]]]] = ...) -> None: ...

class PictureGrid(_message.Message):
    __slots__ = ("first_token", "rows", "columns", "left", "top", "right", "bottom")
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    first_token: int
    rows: int
    columns: int
    left: float
    top: float
    right: float
    bottom: float
    def __init__(self, first_token: _Optional[int] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., left: _Optional[float] = ..., top: _Optional[float] = ..., right: _Optional[float] = ..., bottom: _Optional[float] = ...) -> None: ...

class FeatureValues(_message.Message):
    __slots__ = ("index", "label", "activations")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    activations: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., activations: _Optional[_Iterable[float]] = ...) -> None: ...

class TokenFeatures(_message.Message):
    __slots__ = ("token_id", "text", "features", "left_out")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    features: _containers.RepeatedCompositeFieldContainer[FeatureActivation]
    left_out: bool
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., features: _Optional[_Iterable[_Union[FeatureActivation, _Mapping[str, object]]]] = ..., left_out: _Optional[bool] = ...) -> None: ...

class FeatureActivation(_message.Message):
    __slots__ = ("index", "activation", "label")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    index: int
    activation: float
    label: str
    def __init__(self, index: _Optional[int] = ..., activation: _Optional[float] = ..., label: _Optional[str] = ...) -> None: ...

class GetFeatureRequest(_message.Message):
    __slots__ = ("feature", "neighbour_count")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOUR_COUNT_FIELD_NUMBER: _ClassVar[int]
    feature: _steering_pb2.FeatureRef
    neighbour_count: int
    def __init__(self, feature: _Optional[_Union[_steering_pb2.FeatureRef, _Mapping[str, object]]] = ..., neighbour_count: _Optional[int] = ...) -> None: ...

class GetFeatureResponse(_message.Message):
    __slots__ = ("feature", "histogram", "examples", "neighbours")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    histogram: ActivationHistogram
    examples: _containers.RepeatedCompositeFieldContainer[FeatureExample]
    neighbours: _containers.RepeatedCompositeFieldContainer[FeatureNeighbour]
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping[str, object]]] = ..., histogram: _Optional[_Union[ActivationHistogram, _Mapping[str, object]]] = ..., examples: _Optional[_Iterable[_Union[FeatureExample, _Mapping[str, object]]]] = ..., neighbours: _Optional[_Iterable[_Union[FeatureNeighbour, _Mapping[str, object]]]] = ...) -> None: ...

class FeatureNeighbour(_message.Message):
    __slots__ = ("feature", "cosine")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    cosine: float
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping[str, object]]] = ..., cosine: _Optional[float] = ...) -> None: ...

class ActivationHistogram(_message.Message):
    __slots__ = ("bin_width", "counts", "tokens")
    BIN_WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    bin_width: float
    counts: _containers.RepeatedScalarFieldContainer[int]
    tokens: int
    def __init__(self, bin_width: _Optional[float] = ..., counts: _Optional[_Iterable[int]] = ..., tokens: _Optional[int] = ...) -> None: ...

class FeatureExample(_message.Message):
    __slots__ = ("tokens", "activations", "strongest")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    STRONGEST_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    activations: _containers.RepeatedScalarFieldContainer[float]
    strongest: int
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., activations: _Optional[_Iterable[float]] = ..., strongest: _Optional[int] = ...) -> None: ...

class SearchFeaturesRequest(_message.Message):
    __slots__ = ("query", "sae", "page_size", "page_token")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    query: str
    sae: str
    page_size: int
    page_token: str
    def __init__(self, query: _Optional[str] = ..., sae: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SearchFeaturesResponse(_message.Message):
    __slots__ = ("features", "next_page_token", "total_size")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    next_page_token: str
    total_size: int
    def __init__(self, features: _Optional[_Iterable[_Union[Feature, _Mapping[str, object]]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class ContrastFeaturesRequest(_message.Message):
    __slots__ = ("positive_texts", "negative_texts", "sae", "limit", "positive_languages", "negative_languages", "max_q_value", "positive_images", "negative_images")
    POSITIVE_TEXTS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_TEXTS_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_Q_VALUE_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    positive_texts: _containers.RepeatedScalarFieldContainer[str]
    negative_texts: _containers.RepeatedScalarFieldContainer[str]
    sae: str
    limit: int
    positive_languages: _containers.RepeatedScalarFieldContainer[str]
    negative_languages: _containers.RepeatedScalarFieldContainer[str]
    max_q_value: float
    positive_images: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Image]
    negative_images: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Image]
    def __init__(self, positive_texts: _Optional[_Iterable[str]] = ..., negative_texts: _Optional[_Iterable[str]] = ..., sae: _Optional[str] = ..., limit: _Optional[int] = ..., positive_languages: _Optional[_Iterable[str]] = ..., negative_languages: _Optional[_Iterable[str]] = ..., max_q_value: _Optional[float] = ..., positive_images: _Optional[_Iterable[_Union[_prompt_pb2.Image, _Mapping[str, object]]]] = ..., negative_images: _Optional[_Iterable[_Union[_prompt_pb2.Image, _Mapping[str, object]]]] = ...) -> None: ...

class ContrastFeaturesResponse(_message.Message):
    __slots__ = ("sae", "features", "tested")
    SAE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TESTED_FIELD_NUMBER: _ClassVar[int]
    sae: str
    features: _containers.RepeatedCompositeFieldContainer[FeatureContrast]
    tested: int
    def __init__(self, sae: _Optional[str] = ..., features: _Optional[_Iterable[_Union[FeatureContrast, _Mapping[str, object]]]] = ..., tested: _Optional[int] = ...) -> None: ...

class FeatureContrast(_message.Message):
    __slots__ = ("feature", "score", "positive", "negative", "separation", "standardized_difference", "p_value", "q_value")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    SEPARATION_FIELD_NUMBER: _ClassVar[int]
    STANDARDIZED_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    Q_VALUE_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    score: float
    positive: ContrastSide
    negative: ContrastSide
    separation: float
    standardized_difference: float
    p_value: float
    q_value: float
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping[str, object]]] = ..., score: _Optional[float] = ..., positive: _Optional[_Union[ContrastSide, _Mapping[str, object]]] = ..., negative: _Optional[_Union[ContrastSide, _Mapping[str, object]]] = ..., separation: _Optional[float] = ..., standardized_difference: _Optional[float] = ..., p_value: _Optional[float] = ..., q_value: _Optional[float] = ...) -> None: ...

class ContrastSide(_message.Message):
    __slots__ = ("mean_activation", "firing_rate", "deviation", "firing_rate_by_language")
    class FiringRateByLanguageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MEAN_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    FIRING_RATE_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    FIRING_RATE_BY_LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    mean_activation: float
    firing_rate: float
    deviation: float
    firing_rate_by_language: _containers.ScalarMap[str, float]
    def __init__(self, mean_activation: _Optional[float] = ..., firing_rate: _Optional[float] = ..., deviation: _Optional[float] = ..., firing_rate_by_language: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GetFeatureUsageRequest(_message.Message):
    __slots__ = ("sae", "source", "phase", "order", "limit", "window", "tenant_class", "baseline", "make_baseline")
    SAE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    TENANT_CLASS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    MAKE_BASELINE_FIELD_NUMBER: _ClassVar[int]
    sae: str
    source: UsageSource
    phase: _steering_pb2.Phase
    order: UsageOrder
    limit: int
    window: _duration_pb2.Duration
    tenant_class: str
    baseline: UsageBaseline
    make_baseline: bool
    def __init__(self, sae: _Optional[str] = ..., source: _Optional[_Union[UsageSource, str]] = ..., phase: _Optional[_Union[_steering_pb2.Phase, str]] = ..., order: _Optional[_Union[UsageOrder, str]] = ..., limit: _Optional[int] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., tenant_class: _Optional[str] = ..., baseline: _Optional[_Union[UsageBaseline, _Mapping[str, object]]] = ..., make_baseline: _Optional[bool] = ...) -> None: ...

class GetFeatureUsageResponse(_message.Message):
    __slots__ = ("sae", "site", "sampled_every", "start_time", "end_time", "tokens", "fired_count", "features", "baseline")
    SAE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_EVERY_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    sae: str
    site: str
    sampled_every: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    tokens: int
    fired_count: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureUsage]
    baseline: UsageBaseline
    def __init__(self, sae: _Optional[str] = ..., site: _Optional[str] = ..., sampled_every: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., tokens: _Optional[int] = ..., fired_count: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureUsage, _Mapping[str, object]]]] = ..., baseline: _Optional[_Union[UsageBaseline, _Mapping[str, object]]] = ...) -> None: ...

class FeatureUsage(_message.Message):
    __slots__ = ("feature", "fired", "tokens", "rate", "mean_activation", "max_activation", "last_fired_time", "previous_rate", "log_rate_ratio", "sure_log_rate_ratio")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    FIRED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    LAST_FIRED_TIME_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RATE_FIELD_NUMBER: _ClassVar[int]
    LOG_RATE_RATIO_FIELD_NUMBER: _ClassVar[int]
    SURE_LOG_RATE_RATIO_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    fired: int
    tokens: int
    rate: float
    mean_activation: float
    max_activation: float
    last_fired_time: _timestamp_pb2.Timestamp
    previous_rate: float
    log_rate_ratio: float
    sure_log_rate_ratio: float
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping[str, object]]] = ..., fired: _Optional[int] = ..., tokens: _Optional[int] = ..., rate: _Optional[float] = ..., mean_activation: _Optional[float] = ..., max_activation: _Optional[float] = ..., last_fired_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., previous_rate: _Optional[float] = ..., log_rate_ratio: _Optional[float] = ..., sure_log_rate_ratio: _Optional[float] = ...) -> None: ...

class UsageBaseline(_message.Message):
    __slots__ = ("sae_digest", "start_time", "end_time", "prompt_tokens", "completion_tokens", "prompt_fired", "completion_fired")
    SAE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIRED_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIRED_FIELD_NUMBER: _ClassVar[int]
    sae_digest: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    prompt_tokens: int
    completion_tokens: int
    prompt_fired: _containers.RepeatedScalarFieldContainer[int]
    completion_fired: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sae_digest: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., prompt_fired: _Optional[_Iterable[int]] = ..., completion_fired: _Optional[_Iterable[int]] = ...) -> None: ...
