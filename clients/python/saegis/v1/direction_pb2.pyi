from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeptDirection(_message.Message):
    __slots__ = ("digest", "name", "site", "shipped")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    site: str
    shipped: bool
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., site: _Optional[str] = ..., shipped: _Optional[bool] = ...) -> None: ...

class UploadDirectionRequest(_message.Message):
    __slots__ = ("name", "site", "values", "file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    site: str
    values: _containers.RepeatedScalarFieldContainer[float]
    file: bytes
    def __init__(self, name: _Optional[str] = ..., site: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., file: _Optional[bytes] = ...) -> None: ...

class UploadDirectionResponse(_message.Message):
    __slots__ = ("direction",)
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    direction: KeptDirection
    def __init__(self, direction: _Optional[_Union[KeptDirection, _Mapping[str, object]]] = ...) -> None: ...

class ListDirectionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDirectionsResponse(_message.Message):
    __slots__ = ("directions",)
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    directions: _containers.RepeatedCompositeFieldContainer[KeptDirection]
    def __init__(self, directions: _Optional[_Iterable[_Union[KeptDirection, _Mapping[str, object]]]] = ...) -> None: ...

class DeleteDirectionRequest(_message.Message):
    __slots__ = ("digest", "name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteDirectionResponse(_message.Message):
    __slots__ = ("direction",)
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    direction: KeptDirection
    def __init__(self, direction: _Optional[_Union[KeptDirection, _Mapping[str, object]]] = ...) -> None: ...
