from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_CLAMP: _ClassVar[Operation]
    OPERATION_CLAMP_IF_ACTIVE: _ClassVar[Operation]
    OPERATION_SCALE: _ClassVar[Operation]
    OPERATION_ADD: _ClassVar[Operation]
    OPERATION_CAP: _ClassVar[Operation]
    OPERATION_FLOOR: _ClassVar[Operation]
    OPERATION_ABLATE: _ClassVar[Operation]
    OPERATION_BAN: _ClassVar[Operation]
    OPERATION_REDIRECT: _ClassVar[Operation]

class Unit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNIT_UNSPECIFIED: _ClassVar[Unit]
    UNIT_FEATURE: _ClassVar[Unit]
    UNIT_MAX_ACTIVATION: _ClassVar[Unit]
    UNIT_NORM_FRACTION: _ClassVar[Unit]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_ALL: _ClassVar[Phase]
    PHASE_PROMPT: _ClassVar[Phase]
    PHASE_COMPLETION: _ClassVar[Phase]
OPERATION_UNSPECIFIED: Operation
OPERATION_CLAMP: Operation
OPERATION_CLAMP_IF_ACTIVE: Operation
OPERATION_SCALE: Operation
OPERATION_ADD: Operation
OPERATION_CAP: Operation
OPERATION_FLOOR: Operation
OPERATION_ABLATE: Operation
OPERATION_BAN: Operation
OPERATION_REDIRECT: Operation
UNIT_UNSPECIFIED: Unit
UNIT_FEATURE: Unit
UNIT_MAX_ACTIVATION: Unit
UNIT_NORM_FRACTION: Unit
PHASE_UNSPECIFIED: Phase
PHASE_ALL: Phase
PHASE_PROMPT: Phase
PHASE_COMPLETION: Phase

class Steering(_message.Message):
    __slots__ = ("edits", "watches", "read_prompt", "read_moves")
    EDITS_FIELD_NUMBER: _ClassVar[int]
    WATCHES_FIELD_NUMBER: _ClassVar[int]
    READ_PROMPT_FIELD_NUMBER: _ClassVar[int]
    READ_MOVES_FIELD_NUMBER: _ClassVar[int]
    edits: _containers.RepeatedCompositeFieldContainer[Edit]
    watches: _containers.RepeatedCompositeFieldContainer[Watch]
    read_prompt: bool
    read_moves: bool
    def __init__(self, edits: _Optional[_Iterable[_Union[Edit, _Mapping[str, object]]]] = ..., watches: _Optional[_Iterable[_Union[Watch, _Mapping[str, object]]]] = ..., read_prompt: _Optional[bool] = ..., read_moves: _Optional[bool] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("operation", "feature", "direction", "site", "value", "unit", "phase", "redirect")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    feature: FeatureRef
    direction: Direction
    site: str
    value: float
    unit: Unit
    phase: Phase
    redirect: Redirection
    def __init__(self, operation: _Optional[_Union[Operation, str]] = ..., feature: _Optional[_Union[FeatureRef, _Mapping[str, object]]] = ..., direction: _Optional[_Union[Direction, _Mapping[str, object]]] = ..., site: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[_Union[Unit, str]] = ..., phase: _Optional[_Union[Phase, str]] = ..., redirect: _Optional[_Union[Redirection, _Mapping[str, object]]] = ...) -> None: ...

class Redirection(_message.Message):
    __slots__ = ("feature", "direction", "strength", "threshold")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    feature: FeatureRef
    direction: Direction
    strength: float
    threshold: float
    def __init__(self, feature: _Optional[_Union[FeatureRef, _Mapping[str, object]]] = ..., direction: _Optional[_Union[Direction, _Mapping[str, object]]] = ..., strength: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class Watch(_message.Message):
    __slots__ = ("feature", "direction", "site")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    feature: FeatureRef
    direction: Direction
    site: str
    def __init__(self, feature: _Optional[_Union[FeatureRef, _Mapping[str, object]]] = ..., direction: _Optional[_Union[Direction, _Mapping[str, object]]] = ..., site: _Optional[str] = ...) -> None: ...

class FeatureRef(_message.Message):
    __slots__ = ("sae", "index", "label")
    SAE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    sae: str
    index: int
    label: str
    def __init__(self, sae: _Optional[str] = ..., index: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class Direction(_message.Message):
    __slots__ = ("values", "digest", "name")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    digest: str
    name: str
    def __init__(self, values: _Optional[_Iterable[float]] = ..., digest: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...
