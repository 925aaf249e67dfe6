import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from saegis.v1 import prompt_pb2 as _prompt_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutionMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_MODE_UNSPECIFIED: _ClassVar[ExecutionMode]
    EXECUTION_MODE_COMPILED: _ClassVar[ExecutionMode]
    EXECUTION_MODE_EAGER: _ClassVar[ExecutionMode]
EXECUTION_MODE_UNSPECIFIED: ExecutionMode
EXECUTION_MODE_COMPILED: ExecutionMode
EXECUTION_MODE_EAGER: ExecutionMode

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("id", "architectures", "vocab_size", "max_context_length", "eos_token_ids", "has_chat_template", "hidden_size", "num_layers", "dtype", "sites", "saes", "sees_pictures")
    ID_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURES_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    SEES_PICTURES_FIELD_NUMBER: _ClassVar[int]
    id: str
    architectures: _containers.RepeatedScalarFieldContainer[str]
    vocab_size: int
    max_context_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    has_chat_template: bool
    hidden_size: int
    num_layers: int
    dtype: str
    sites: _containers.RepeatedCompositeFieldContainer[Site]
    saes: _containers.RepeatedCompositeFieldContainer[Sae]
    sees_pictures: bool
    def __init__(self, id: _Optional[str] = ..., architectures: _Optional[_Iterable[str]] = ..., vocab_size: _Optional[int] = ..., max_context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., has_chat_template: _Optional[bool] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., dtype: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[Site, _Mapping[str, object]]]] = ..., saes: _Optional[_Iterable[_Union[Sae, _Mapping[str, object]]]] = ..., sees_pictures: _Optional[bool] = ...) -> None: ...

class Site(_message.Message):
    __slots__ = ("name", "layer", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    layer: int
    width: int
    def __init__(self, name: _Optional[str] = ..., layer: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Sae(_message.Message):
    __slots__ = ("id", "digest", "site", "width", "feature_count", "architecture", "fvu", "l0", "labelled_count")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    FEATURE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    FVU_FIELD_NUMBER: _ClassVar[int]
    L0_FIELD_NUMBER: _ClassVar[int]
    LABELLED_COUNT_FIELD_NUMBER: _ClassVar[int]
    id: str
    digest: str
    site: str
    width: int
    feature_count: int
    architecture: str
    fvu: float
    l0: float
    labelled_count: int
    def __init__(self, id: _Optional[str] = ..., digest: _Optional[str] = ..., site: _Optional[str] = ..., width: _Optional[int] = ..., feature_count: _Optional[int] = ..., architecture: _Optional[str] = ..., fvu: _Optional[float] = ..., l0: _Optional[float] = ..., labelled_count: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "start_time", "execution_mode", "torch_version", "device", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_MODE_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    start_time: _timestamp_pb2.Timestamp
    execution_mode: ExecutionMode
    torch_version: str
    device: str
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., execution_mode: _Optional[_Union[ExecutionMode, str]] = ..., torch_version: _Optional[str] = ..., device: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping[str, object]]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_n", "max_edits_per_site", "max_bans_per_site", "max_watches_per_site", "max_queue", "max_num_seqs", "max_logprobs", "max_message_bytes", "max_logit_bias", "max_stop_token_ids", "max_messages", "max_text_characters", "max_fields", "max_pictures", "max_picture_bytes", "max_picture_pixels", "max_picture_side")
    MAX_N_FIELD_NUMBER: _ClassVar[int]
    MAX_EDITS_PER_SITE_FIELD_NUMBER: _ClassVar[int]
    MAX_BANS_PER_SITE_FIELD_NUMBER: _ClassVar[int]
    MAX_WATCHES_PER_SITE_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURES_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PICTURE_SIDE_FIELD_NUMBER: _ClassVar[int]
    max_n: int
    max_edits_per_site: int
    max_bans_per_site: int
    max_watches_per_site: int
    max_queue: int
    max_num_seqs: int
    max_logprobs: int
    max_message_bytes: int
    max_logit_bias: int
    max_stop_token_ids: int
    max_messages: int
    max_text_characters: int
    max_fields: int
    max_pictures: int
    max_picture_bytes: int
    max_picture_pixels: int
    max_picture_side: int
    def __init__(self, max_n: _Optional[int] = ..., max_edits_per_site: _Optional[int] = ..., max_bans_per_site: _Optional[int] = ..., max_watches_per_site: _Optional[int] = ..., max_queue: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_logprobs: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_logit_bias: _Optional[int] = ..., max_stop_token_ids: _Optional[int] = ..., max_messages: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., max_fields: _Optional[int] = ..., max_pictures: _Optional[int] = ..., max_picture_bytes: _Optional[int] = ..., max_picture_pixels: _Optional[int] = ..., max_picture_side: _Optional[int] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "max_total_num_tokens", "token_usage", "gen_throughput", "max_running_requests")
    NUM_RUNNING_REQS_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_REQS_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_USAGE_FIELD_NUMBER: _ClassVar[int]
    GEN_THROUGHPUT_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    gen_throughput: float
    max_running_requests: int
    def __init__(self, num_running_reqs: _Optional[int] = ..., num_waiting_reqs: _Optional[int] = ..., num_used_tokens: _Optional[int] = ..., max_total_num_tokens: _Optional[int] = ..., token_usage: _Optional[float] = ..., gen_throughput: _Optional[float] = ..., max_running_requests: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("text", "chat", "add_special_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    chat: _prompt_pb2.Chat
    add_special_tokens: bool
    def __init__(self, text: _Optional[str] = ..., chat: _Optional[_Union[_prompt_pb2.Chat, _Mapping[str, object]]] = ..., add_special_tokens: _Optional[bool] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "skip_special_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...
