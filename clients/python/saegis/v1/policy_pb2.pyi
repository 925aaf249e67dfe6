import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from saegis.v1 import steering_pb2 as _steering_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_KIND_UNSPECIFIED: _ClassVar[ChangeKind]
    CHANGE_KIND_ADDED: _ClassVar[ChangeKind]
    CHANGE_KIND_REMOVED: _ClassVar[ChangeKind]
    CHANGE_KIND_CHANGED: _ClassVar[ChangeKind]

class RuleMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_MODE_UNSPECIFIED: _ClassVar[RuleMode]
    RULE_MODE_ENFORCE: _ClassVar[RuleMode]
    RULE_MODE_AUDIT: _ClassVar[RuleMode]
    RULE_MODE_SHADOW: _ClassVar[RuleMode]
CHANGE_KIND_UNSPECIFIED: ChangeKind
CHANGE_KIND_ADDED: ChangeKind
CHANGE_KIND_REMOVED: ChangeKind
CHANGE_KIND_CHANGED: ChangeKind
RULE_MODE_UNSPECIFIED: RuleMode
RULE_MODE_ENFORCE: RuleMode
RULE_MODE_AUDIT: RuleMode
RULE_MODE_SHADOW: RuleMode

class PolicyRevision(_message.Message):
    __slots__ = ("name", "serial", "revision", "digest", "signed_by", "put_time", "put_by", "active", "shadow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    PUT_TIME_FIELD_NUMBER: _ClassVar[int]
    PUT_BY_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    serial: int
    revision: str
    digest: str
    signed_by: str
    put_time: _timestamp_pb2.Timestamp
    put_by: str
    active: bool
    shadow: bool
    def __init__(self, name: _Optional[str] = ..., serial: _Optional[int] = ..., revision: _Optional[str] = ..., digest: _Optional[str] = ..., signed_by: _Optional[str] = ..., put_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., put_by: _Optional[str] = ..., active: _Optional[bool] = ..., shadow: _Optional[bool] = ...) -> None: ...

class PolicyState(_message.Message):
    __slots__ = ("active", "shadow", "etag", "description", "rules")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    active: PolicyRevision
    shadow: PolicyRevision
    etag: str
    description: str
    rules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, active: _Optional[_Union[PolicyRevision, _Mapping[str, object]]] = ..., shadow: _Optional[_Union[PolicyRevision, _Mapping[str, object]]] = ..., etag: _Optional[str] = ..., description: _Optional[str] = ..., rules: _Optional[_Iterable[str]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("name", "include_bundle", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    include_bundle: bool
    digest: str
    def __init__(self, name: _Optional[str] = ..., include_bundle: _Optional[bool] = ..., digest: _Optional[str] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy", "bundle")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyState
    bundle: bytes
    def __init__(self, policy: _Optional[_Union[PolicyState, _Mapping[str, object]]] = ..., bundle: _Optional[bytes] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies", "policy_revision")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyState]
    policy_revision: str
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyState, _Mapping[str, object]]]] = ..., policy_revision: _Optional[str] = ...) -> None: ...

class ValidatePolicyRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    def __init__(self, bundle: _Optional[bytes] = ...) -> None: ...

class ValidatePolicyResponse(_message.Message):
    __slots__ = ("valid", "problems", "revision", "cases", "warnings", "replaces", "changes")
    VALID_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    valid: bool
    problems: _containers.RepeatedCompositeFieldContainer[PolicyProblem]
    revision: PolicyRevision
    cases: _containers.RepeatedCompositeFieldContainer[CaseOutcome]
    warnings: _containers.RepeatedCompositeFieldContainer[PolicyProblem]
    replaces: PolicyState
    changes: PolicyChanges
    def __init__(self, valid: _Optional[bool] = ..., problems: _Optional[_Iterable[_Union[PolicyProblem, _Mapping[str, object]]]] = ..., revision: _Optional[_Union[PolicyRevision, _Mapping[str, object]]] = ..., cases: _Optional[_Iterable[_Union[CaseOutcome, _Mapping[str, object]]]] = ..., warnings: _Optional[_Iterable[_Union[PolicyProblem, _Mapping[str, object]]]] = ..., replaces: _Optional[_Union[PolicyState, _Mapping[str, object]]] = ..., changes: _Optional[_Union[PolicyChanges, _Mapping[str, object]]] = ...) -> None: ...

class PolicyChanges(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PolicyChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[PolicyChange, _Mapping[str, object]]]] = ...) -> None: ...

class PolicyChange(_message.Message):
    __slots__ = ("change", "key")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    change: ChangeKind
    key: str
    def __init__(self, change: _Optional[_Union[ChangeKind, str]] = ..., key: _Optional[str] = ...) -> None: ...

class PolicyProblem(_message.Message):
    __slots__ = ("file", "line", "path", "message")
    FILE_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    file: str
    line: int
    path: str
    message: str
    def __init__(self, file: _Optional[str] = ..., line: _Optional[int] = ..., path: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class CaseOutcome(_message.Message):
    __slots__ = ("name", "passed", "failures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    passed: bool
    failures: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., passed: _Optional[bool] = ..., failures: _Optional[_Iterable[str]] = ...) -> None: ...

class EvaluatePolicyRequest(_message.Message):
    __slots__ = ("tenant", "roles", "steering", "bundle", "uses")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    steering: _steering_pb2.Steering
    bundle: bytes
    uses: _containers.RepeatedCompositeFieldContainer[RequestedUse]
    def __init__(self, tenant: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., steering: _Optional[_Union[_steering_pb2.Steering, _Mapping[str, object]]] = ..., bundle: _Optional[bytes] = ..., uses: _Optional[_Iterable[_Union[RequestedUse, _Mapping[str, object]]]] = ...) -> None: ...

class RequestedUse(_message.Message):
    __slots__ = ("word", "value")
    WORD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    word: str
    value: float
    def __init__(self, word: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class EvaluatePolicyResponse(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: PolicyDecision
    def __init__(self, decision: _Optional[_Union[PolicyDecision, _Mapping[str, object]]] = ...) -> None: ...

class PolicyDecision(_message.Message):
    __slots__ = ("allowed", "policy_revision", "denials", "rules", "program_digest")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    DENIALS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_DIGEST_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    policy_revision: str
    denials: _containers.RepeatedCompositeFieldContainer[Denial]
    rules: _containers.RepeatedCompositeFieldContainer[AppliedRule]
    program_digest: str
    def __init__(self, allowed: _Optional[bool] = ..., policy_revision: _Optional[str] = ..., denials: _Optional[_Iterable[_Union[Denial, _Mapping[str, object]]]] = ..., rules: _Optional[_Iterable[_Union[AppliedRule, _Mapping[str, object]]]] = ..., program_digest: _Optional[str] = ...) -> None: ...

class Denial(_message.Message):
    __slots__ = ("policy", "rule", "field", "message")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    policy: str
    rule: str
    field: str
    message: str
    def __init__(self, policy: _Optional[str] = ..., rule: _Optional[str] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class AppliedRule(_message.Message):
    __slots__ = ("policy", "rule", "action", "mode", "labels", "reason", "tokens", "conditional", "acted", "targets", "held", "first_held", "stopped", "readings")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    ACTED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FIRST_HELD_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    rule: str
    action: str
    mode: RuleMode
    labels: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    tokens: int
    conditional: bool
    acted: PhaseTokens
    targets: _containers.RepeatedCompositeFieldContainer[TargetTokens]
    held: PhaseTokens
    first_held: int
    stopped: int
    readings: _containers.RepeatedCompositeFieldContainer[TargetTokens]
    def __init__(self, policy: _Optional[str] = ..., rule: _Optional[str] = ..., action: _Optional[str] = ..., mode: _Optional[_Union[RuleMode, str]] = ..., labels: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., tokens: _Optional[int] = ..., conditional: _Optional[bool] = ..., acted: _Optional[_Union[PhaseTokens, _Mapping[str, object]]] = ..., targets: _Optional[_Iterable[_Union[TargetTokens, _Mapping[str, object]]]] = ..., held: _Optional[_Union[PhaseTokens, _Mapping[str, object]]] = ..., first_held: _Optional[int] = ..., stopped: _Optional[int] = ..., readings: _Optional[_Iterable[_Union[TargetTokens, _Mapping[str, object]]]] = ...) -> None: ...

class PhaseTokens(_message.Message):
    __slots__ = ("prompt", "completion")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    prompt: int
    completion: int
    def __init__(self, prompt: _Optional[int] = ..., completion: _Optional[int] = ...) -> None: ...

class TargetTokens(_message.Message):
    __slots__ = ("site", "sae", "index", "label", "direction", "tokens", "direction_name")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_NAME_FIELD_NUMBER: _ClassVar[int]
    site: str
    sae: str
    index: int
    label: str
    direction: str
    tokens: PhaseTokens
    direction_name: str
    def __init__(self, site: _Optional[str] = ..., sae: _Optional[str] = ..., index: _Optional[int] = ..., label: _Optional[str] = ..., direction: _Optional[str] = ..., tokens: _Optional[_Union[PhaseTokens, _Mapping[str, object]]] = ..., direction_name: _Optional[str] = ...) -> None: ...

class PutPolicyRequest(_message.Message):
    __slots__ = ("bundle", "etag", "shadow")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    etag: str
    shadow: bool
    def __init__(self, bundle: _Optional[bytes] = ..., etag: _Optional[str] = ..., shadow: _Optional[bool] = ...) -> None: ...

class PutPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyState
    def __init__(self, policy: _Optional[_Union[PolicyState, _Mapping[str, object]]] = ...) -> None: ...

class RollBackPolicyRequest(_message.Message):
    __slots__ = ("name", "digest", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class RollBackPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyState
    def __init__(self, policy: _Optional[_Union[PolicyState, _Mapping[str, object]]] = ...) -> None: ...

class ListPolicyRevisionsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListPolicyRevisionsResponse(_message.Message):
    __slots__ = ("revisions",)
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[PolicyRevision]
    def __init__(self, revisions: _Optional[_Iterable[_Union[PolicyRevision, _Mapping[str, object]]]] = ...) -> None: ...
