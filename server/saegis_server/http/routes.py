"""Routes: the one table of what is answered over HTTP, of which application and description are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.descriptor import Descriptor

from saegis.v1 import audit_pb2, feature_pb2, model_pb2, policy_pb2
from saegis_server.http.endpoints import Endpoint, Face, Generation, Models, Unary
from saegis_server.http.fields import Kind

Verb = Literal["GET", "POST"]
_FEATURES = "/saegis.v1.FeatureService/"
_MODELS, _POLICIES = "/saegis.v1.ModelService/", "/saegis.v1.PolicyService/"


@dataclass(frozen=True, slots=True)
class Route:
    """One path and verb: what it does in words, its endpoint, and its messages where it is an RPC as it is.

    fields: the kind of body of a request that is read by the table of fields.
    """

    verb: Verb
    path: str
    summary: str
    make: Callable[[Face], Endpoint]
    request: Descriptor | None = None
    response: Descriptor | None = None
    fields: Kind | None = None


def _feature(path: Mapping[str, str]) -> dict[str, Any]:
    return {"feature": {"sae": path["sae"], "index": path["index"]}}


def _inspect(face: Face) -> Endpoint:
    return Unary(face, f"{_FEATURES}Inspect", feature_pb2.InspectRequest, lambda to: to.features.Inspect)


def _contrast(face: Face) -> Endpoint:
    method, kind = f"{_FEATURES}ContrastFeatures", feature_pb2.ContrastFeaturesRequest
    return Unary(face, method, kind, lambda to: to.features.ContrastFeatures)


def _search(face: Face) -> Endpoint:
    method, kind = f"{_FEATURES}SearchFeatures", feature_pb2.SearchFeaturesRequest
    return Unary(face, method, kind, lambda to: to.features.SearchFeatures)


def _get_feature(face: Face) -> Endpoint:
    method, kind = f"{_FEATURES}GetFeature", feature_pb2.GetFeatureRequest
    return Unary(face, method, kind, lambda to: to.features.GetFeature, _feature)


def _usage(face: Face) -> Endpoint:
    method, kind = f"{_FEATURES}GetFeatureUsage", feature_pb2.GetFeatureUsageRequest
    return Unary(face, method, kind, lambda to: to.features.GetFeatureUsage)


def _model(face: Face) -> Endpoint:
    return Unary(face, f"{_MODELS}GetModel", model_pb2.GetModelRequest, lambda to: to.models.GetModel)


def _server(face: Face) -> Endpoint:
    method, kind = f"{_MODELS}GetServerInfo", model_pb2.GetServerInfoRequest
    return Unary(face, method, kind, lambda to: to.models.GetServerInfo)


def _tokenize(face: Face) -> Endpoint:
    return Unary(face, f"{_MODELS}Tokenize", model_pb2.TokenizeRequest, lambda to: to.models.Tokenize)


def _list_policies(face: Face) -> Endpoint:
    method, kind = f"{_POLICIES}ListPolicies", policy_pb2.ListPoliciesRequest
    return Unary(face, method, kind, lambda to: to.policies.ListPolicies)


def _get_policy(face: Face) -> Endpoint:
    method, kind = f"{_POLICIES}GetPolicy", policy_pb2.GetPolicyRequest
    return Unary(face, method, kind, lambda to: to.policies.GetPolicy)


def _list_revisions(face: Face) -> Endpoint:
    method, kind = f"{_POLICIES}ListPolicyRevisions", policy_pb2.ListPolicyRevisionsRequest
    return Unary(face, method, kind, lambda to: to.policies.ListPolicyRevisions)


def _evaluate(face: Face) -> Endpoint:
    method, kind = f"{_POLICIES}EvaluatePolicy", policy_pb2.EvaluatePolicyRequest
    return Unary(face, method, kind, lambda to: to.policies.EvaluatePolicy)


def _validate(face: Face) -> Endpoint:
    method, kind = f"{_POLICIES}ValidatePolicy", policy_pb2.ValidatePolicyRequest
    return Unary(face, method, kind, lambda to: to.policies.ValidatePolicy)


def _audit(face: Face) -> Endpoint:
    method, kind = "/saegis.v1.AuditService/SearchAudit", audit_pb2.SearchAuditRequest
    return Unary(face, method, kind, lambda to: to.audit.SearchAudit)


def _types(module: Any, name: str) -> tuple[Descriptor, Descriptor]:
    kinds = module.DESCRIPTOR.message_types_by_name
    return kinds[f"{name}Request"], kinds[f"{name}Response"]


#: The routes. Of two that match, the first one counts.
ROUTES = (
    Route("GET", "/v1/models", "The model, alone and with each preset.", Models),
    Route("GET", "/v1/models/{model:path}", "One of them.", Models),
    Route(
        "POST",
        "/v1/chat/completions",
        "Continues a conversation, steered as the request asks and as the operator's policy demands.",
        lambda face: Generation(face, Kind.CHAT),
        fields=Kind.CHAT,
    ),
    Route(
        "POST",
        "/v1/completions",
        "Continues a text.",
        lambda face: Generation(face, Kind.COMPLETION),
        fields=Kind.COMPLETION,
    ),
    Route(
        "GET",
        "/v1/features/search",
        "Finds features by words of their labels, subjects and languages.",
        _search,
        *_types(feature_pb2, "SearchFeatures"),
    ),
    Route(
        "GET",
        "/v1/features/{sae:path}/{index}",
        "Tells what is known about one feature.",
        _get_feature,
        *_types(feature_pb2, "GetFeature"),
    ),
    Route(
        "POST",
        "/v1/inspect",
        "Tells the strongest features of each token of a text.",
        _inspect,
        *_types(feature_pb2, "Inspect"),
    ),
    Route(
        "POST",
        "/v1/contrast",
        "Finds the features that tell two sets of texts apart.",
        _contrast,
        *_types(feature_pb2, "ContrastFeatures"),
    ),
    Route(
        "GET",
        "/v1/usage",
        "Tells which features fire most in what is written for everybody.",
        _usage,
        *_types(feature_pb2, "GetFeatureUsage"),
    ),
    Route(
        "POST",
        "/v1/usage",
        "The same, with a baseline to compare with.",
        _usage,
        *_types(feature_pb2, "GetFeatureUsage"),
    ),
    Route(
        "GET",
        "/v1/model",
        "Describes the model, its sites and the SAEs at them.",
        _model,
        *_types(model_pb2, "GetModel"),
    ),
    Route(
        "GET",
        "/v1/server",
        "Describes the server: versions, device and limits.",
        _server,
        *_types(model_pb2, "GetServerInfo"),
    ),
    Route(
        "POST",
        "/v1/tokenize",
        "Turns a text or a conversation into token ids.",
        _tokenize,
        *_types(model_pb2, "Tokenize"),
    ),
    Route(
        "GET",
        "/v1/policies",
        "Lists the policies in force.",
        _list_policies,
        *_types(policy_pb2, "ListPolicies"),
    ),
    Route(
        "GET",
        "/v1/policies/{name}",
        "Tells one policy in force, with its bundle if asked for.",
        _get_policy,
        *_types(policy_pb2, "GetPolicy"),
    ),
    Route(
        "GET",
        "/v1/policies/{name}/revisions",
        "Lists the revisions that a policy had.",
        _list_revisions,
        *_types(policy_pb2, "ListPolicyRevisions"),
    ),
    Route(
        "POST",
        "/v1/policies/evaluate",
        "Tells what the policies, or a bundle, would decide on a request.",
        _evaluate,
        *_types(policy_pb2, "EvaluatePolicy"),
    ),
    Route(
        "POST",
        "/v1/policies/validate",
        "Checks a bundle and tells what it would change. Nothing is put in force.",
        _validate,
        *_types(policy_pb2, "ValidatePolicy"),
    ),
    Route(
        "GET",
        "/v1/audit",
        "Finds decisions and answers in the audit log, newest first.",
        _audit,
        *_types(audit_pb2, "SearchAudit"),
    ),
)
