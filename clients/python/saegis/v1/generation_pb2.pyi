from saegis.v1 import policy_pb2 as _policy_pb2
from saegis.v1 import prompt_pb2 as _prompt_pb2
from saegis.v1 import steering_pb2 as _steering_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORT: _ClassVar[FinishReason]
    FINISH_REASON_CONTENT_FILTER: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORT: FinishReason
FINISH_REASON_CONTENT_FILTER: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "token_ids", "chat", "sampling", "steering")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    token_ids: _prompt_pb2.TokenIds
    chat: _prompt_pb2.Chat
    sampling: SamplingParams
    steering: _steering_pb2.Steering
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_prompt_pb2.TokenIds, _Mapping[str, object]]] = ..., chat: _Optional[_Union[_prompt_pb2.Chat, _Mapping[str, object]]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping[str, object]]] = ..., steering: _Optional[_Union[_steering_pb2.Steering, _Mapping[str, object]]] = ...) -> None: ...

class StreamGenerateRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping[str, object]]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "max_tokens", "min_tokens", "stop", "stop_token_ids", "skip_special_tokens", "ignore_eos", "n", "logprobs", "seed", "include_stop_str_in_output", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_STR_IN_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    max_tokens: int
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    ignore_eos: bool
    n: int
    logprobs: int
    seed: int
    include_stop_str_in_output: bool
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: _Optional[bool] = ..., ignore_eos: _Optional[bool] = ..., n: _Optional[int] = ..., logprobs: _Optional[int] = ..., seed: _Optional[int] = ..., include_stop_str_in_output: _Optional[bool] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "choices", "usage", "receipt", "prompt_watched", "prompt_moves")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_WATCHED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_MOVES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: Usage
    receipt: Receipt
    prompt_watched: _containers.RepeatedCompositeFieldContainer[WatchedActivations]
    prompt_moves: _containers.RepeatedCompositeFieldContainer[SiteMoves]
    def __init__(self, request_id: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping[str, object]]]] = ..., usage: _Optional[_Union[Usage, _Mapping[str, object]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping[str, object]]] = ..., prompt_watched: _Optional[_Iterable[_Union[WatchedActivations, _Mapping[str, object]]]] = ..., prompt_moves: _Optional[_Iterable[_Union[SiteMoves, _Mapping[str, object]]]] = ...) -> None: ...

class StreamGenerateResponse(_message.Message):
    __slots__ = ("chunk", "complete")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    chunk: GenerationChunk
    complete: GenerationComplete
    def __init__(self, chunk: _Optional[_Union[GenerationChunk, _Mapping[str, object]]] = ..., complete: _Optional[_Union[GenerationComplete, _Mapping[str, object]]] = ...) -> None: ...

class GenerationChunk(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "watched", "finish_reason", "moves", "prompt_watched", "prompt_moves")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_WATCHED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_MOVES_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: LogProbs
    watched: _containers.RepeatedCompositeFieldContainer[WatchedActivations]
    finish_reason: FinishReason
    moves: _containers.RepeatedCompositeFieldContainer[SiteMoves]
    prompt_watched: _containers.RepeatedCompositeFieldContainer[WatchedActivations]
    prompt_moves: _containers.RepeatedCompositeFieldContainer[SiteMoves]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Union[LogProbs, _Mapping[str, object]]] = ..., watched: _Optional[_Iterable[_Union[WatchedActivations, _Mapping[str, object]]]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., moves: _Optional[_Iterable[_Union[SiteMoves, _Mapping[str, object]]]] = ..., prompt_watched: _Optional[_Iterable[_Union[WatchedActivations, _Mapping[str, object]]]] = ..., prompt_moves: _Optional[_Iterable[_Union[SiteMoves, _Mapping[str, object]]]] = ...) -> None: ...

class GenerationComplete(_message.Message):
    __slots__ = ("request_id", "outcomes", "usage", "receipt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    usage: Usage
    receipt: Receipt
    def __init__(self, request_id: _Optional[str] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping[str, object]]]] = ..., usage: _Optional[_Union[Usage, _Mapping[str, object]]] = ..., receipt: _Optional[_Union[Receipt, _Mapping[str, object]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("index", "finish_reason", "matched_token_id", "matched_stop_str")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_STR_FIELD_NUMBER: _ClassVar[int]
    index: int
    finish_reason: FinishReason
    matched_token_id: int
    matched_stop_str: str
    def __init__(self, index: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., matched_token_id: _Optional[int] = ..., matched_stop_str: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "watched", "finish_reason", "matched_token_id", "matched_stop_str", "moves")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_STR_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: LogProbs
    watched: _containers.RepeatedCompositeFieldContainer[WatchedActivations]
    finish_reason: FinishReason
    matched_token_id: int
    matched_stop_str: str
    moves: _containers.RepeatedCompositeFieldContainer[SiteMoves]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Union[LogProbs, _Mapping[str, object]]] = ..., watched: _Optional[_Iterable[_Union[WatchedActivations, _Mapping[str, object]]]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., matched_token_id: _Optional[int] = ..., matched_stop_str: _Optional[str] = ..., moves: _Optional[_Iterable[_Union[SiteMoves, _Mapping[str, object]]]] = ...) -> None: ...

class LogProbs(_message.Message):
    __slots__ = ("token_logprobs", "token_ids", "top_logprobs")
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_logprobs: _containers.RepeatedScalarFieldContainer[float]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogProbs]
    def __init__(self, token_logprobs: _Optional[_Iterable[float]] = ..., token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogProbs, _Mapping[str, object]]]] = ...) -> None: ...

class TopLogProbs(_message.Message):
    __slots__ = ("values", "token_ids")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[float]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class WatchedActivations(_message.Message):
    __slots__ = ("watch", "before", "after", "set_to")
    WATCH_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SET_TO_FIELD_NUMBER: _ClassVar[int]
    watch: int
    before: _containers.RepeatedScalarFieldContainer[float]
    after: _containers.RepeatedScalarFieldContainer[float]
    set_to: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, watch: _Optional[int] = ..., before: _Optional[_Iterable[float]] = ..., after: _Optional[_Iterable[float]] = ..., set_to: _Optional[_Iterable[float]] = ...) -> None: ...

class SiteMoves(_message.Message):
    __slots__ = ("site", "relative_norms")
    SITE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_NORMS_FIELD_NUMBER: _ClassVar[int]
    site: str
    relative_norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, site: _Optional[str] = ..., relative_norms: _Optional[_Iterable[float]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens", "steered_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    steered_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., steered_tokens: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "text", "token_ids", "chat", "steering", "unruled", "as_answer")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    UNRULED_FIELD_NUMBER: _ClassVar[int]
    AS_ANSWER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    token_ids: _prompt_pb2.TokenIds
    chat: _prompt_pb2.Chat
    steering: _steering_pb2.Steering
    unruled: bool
    as_answer: bool
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_prompt_pb2.TokenIds, _Mapping[str, object]]] = ..., chat: _Optional[_Union[_prompt_pb2.Chat, _Mapping[str, object]]] = ..., steering: _Optional[_Union[_steering_pb2.Steering, _Mapping[str, object]]] = ..., unruled: _Optional[bool] = ..., as_answer: _Optional[bool] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "token_ids", "logprobs", "plain_logprobs", "divergences", "receipt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    plain_logprobs: _containers.RepeatedScalarFieldContainer[float]
    divergences: _containers.RepeatedScalarFieldContainer[float]
    receipt: Receipt
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., plain_logprobs: _Optional[_Iterable[float]] = ..., divergences: _Optional[_Iterable[float]] = ..., receipt: _Optional[_Union[Receipt, _Mapping[str, object]]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("program_digest", "policy_revision", "sites", "steered", "model", "timings", "rules", "ruled", "decision_id", "first_token_steered", "first_token_read", "edits", "trace_id")
    PROGRAM_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    STEERED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    RULED_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_STEERED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_READ_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    program_digest: str
    policy_revision: str
    sites: _containers.RepeatedCompositeFieldContainer[SiteReceipt]
    steered: bool
    model: str
    timings: Timings
    rules: _containers.RepeatedCompositeFieldContainer[_policy_pb2.AppliedRule]
    ruled: bool
    decision_id: str
    first_token_steered: bool
    first_token_read: bool
    edits: _containers.RepeatedCompositeFieldContainer[AppliedEdit]
    trace_id: str
    def __init__(self, program_digest: _Optional[str] = ..., policy_revision: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[SiteReceipt, _Mapping[str, object]]]] = ..., steered: _Optional[bool] = ..., model: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping[str, object]]] = ..., rules: _Optional[_Iterable[_Union[_policy_pb2.AppliedRule, _Mapping[str, object]]]] = ..., ruled: _Optional[bool] = ..., decision_id: _Optional[str] = ..., first_token_steered: _Optional[bool] = ..., first_token_read: _Optional[bool] = ..., edits: _Optional[_Iterable[_Union[AppliedEdit, _Mapping[str, object]]]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class AppliedEdit(_message.Message):
    __slots__ = ("edit", "operation", "target")
    EDIT_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    edit: int
    operation: _steering_pb2.Operation
    target: _policy_pb2.TargetTokens
    def __init__(self, edit: _Optional[int] = ..., operation: _Optional[_Union[_steering_pb2.Operation, str]] = ..., target: _Optional[_Union[_policy_pb2.TargetTokens, _Mapping[str, object]]] = ...) -> None: ...

class SiteReceipt(_message.Message):
    __slots__ = ("site", "edits", "rules", "bans", "watches", "tokens_edited", "bans_fired", "largest_relative_norm", "mean_relative_norm")
    SITE_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    BANS_FIELD_NUMBER: _ClassVar[int]
    WATCHES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_EDITED_FIELD_NUMBER: _ClassVar[int]
    BANS_FIRED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    MEAN_RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    site: str
    edits: int
    rules: int
    bans: int
    watches: int
    tokens_edited: int
    bans_fired: int
    largest_relative_norm: float
    mean_relative_norm: float
    def __init__(self, site: _Optional[str] = ..., edits: _Optional[int] = ..., rules: _Optional[int] = ..., bans: _Optional[int] = ..., watches: _Optional[int] = ..., tokens_edited: _Optional[int] = ..., bans_fired: _Optional[int] = ..., largest_relative_norm: _Optional[float] = ..., mean_relative_norm: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "prefill_seconds", "decode_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ...) -> None: ...
