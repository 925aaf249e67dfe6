"""The blocking client."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from saegis import decode, policy_decode, policy_requests, requests
from saegis.base import (
    GENERATION_SERVICE,
    HEALTH_CHECK,
    HEALTH_TIMEOUT_SECONDS,
    BaseClient,
    HealthRequest,
    HealthResponse,
    Patience,
    why_not_ready,
)
from saegis.errors import SaegisError, from_rpc_error
from saegis.feature_results import Contrast, FeatureInfo, FeaturePage, Inspection
from saegis.model_results import Load, ModelInfo, ServerInfo, TokenizedText
from saegis.policy_results import Decision, Policy, PolicyList, PolicyRevision, PolicyState, Validation
from saegis.requests import ChatMessage, GenerationOptions
from saegis.results import Generation
from saegis.score_results import Score
from saegis.steering import Edit, FeatureRef
from saegis.streams import Stream
from saegis.v1 import (
    feature_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Stubs:
    """The services' methods on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.feature = feature_pb2_grpc.FeatureServiceStub(channel)
        self.model = model_pb2_grpc.ModelServiceStub(channel)
        self.policy = policy_pb2_grpc.PolicyServiceStub(channel)
        self.health: grpc.UnaryUnaryMultiCallable[HealthRequest, HealthResponse] = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=HealthRequest.SerializeToString,
            response_deserializer=HealthResponse.FromString,
        )


class Client(BaseClient):
    """Talks to a Saegis server; every method waits for its answer.

        with Client("127.0.0.1:50051") as client:
            asked = [{"role": "user", "content": "How do I visit the Golden Gate Bridge?"}]
            wall = clamp("Great Wall", 1.0, unit="max_activation")
            answer = client.generate(messages=asked, steering=[wall], temperature=0.0)
            print(answer.text, answer.receipt.steered)

    Safe to share between threads. `timeout` is a call's deadline in seconds; None means the client's,
    `math.inf` means none. Calls that fail raise subclasses of `saegis.SaegisError`; arguments that cannot be
    written into a request raise TypeError or ValueError.
    """

    def _open(self) -> None:
        self._channel = (
            grpc.insecure_channel(self.target, self._options)
            if self._credentials is None
            else grpc.secure_channel(self.target, self._credentials, self._options)
        )
        self._stubs = _Stubs(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Continue a prompt, `messages` or `token_ids`; answers when everything is generated."""
        request = requests.generate(prompt, options)
        return decode.generation(self._call(self._stubs.generation.Generate, request, timeout))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Continue a prompt as `generate` does, chunk by chunk. Errors surface in the iteration."""
        request = generation_pb2.StreamGenerateRequest(request=requests.generate(prompt, options))
        method = self._stubs.generation.StreamGenerate
        call = method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        return Stream(call, self._reach)

    def score(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        steering: Sequence[Edit] = (),
        unruled: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Score:
        """Tell how likely a text, a finished conversation or token ids are, with `steering` and without.

        With `unruled`, they are compared with the model without the operator's rules too: that needs the role
        of that name and, under a policy, that it is allowed.
        """
        request = requests.score(
            text,
            messages=messages,
            token_ids=token_ids,
            steering=steering,
            unruled=unruled,
            request_id=request_id,
        )
        return decode.score(self._call(self._stubs.generation.Score, request, timeout))

    def inspect(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        sae: str = "",
        site: str = "",
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> Inspection:
        """Tell the `top_k` strongest features of each token of a text, a conversation or token ids."""
        request = requests.inspect(
            text, messages=messages, token_ids=token_ids, sae=sae, site=site, top_k=top_k
        )
        return decode.inspection(self._call(self._stubs.feature.Inspect, request, timeout))

    def get_feature(
        self, feature: int | str | FeatureRef | FeatureInfo, *, sae: str = "", timeout: float | None = None
    ) -> FeatureInfo:
        """Tell what is recorded about one feature, given by index or by exact label."""
        request = requests.get_feature(feature, sae)
        answer = self._call(self._stubs.feature.GetFeature, request, timeout)
        return decode.feature(answer.feature)

    def search_features(
        self,
        query: str = "",
        *,
        sae: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> FeaturePage:
        """Find features by words of their labels, best first. An empty query finds every labelled one."""
        request = requests.search_features(query, sae=sae, page_size=page_size, page_token=page_token)
        return decode.feature_page(self._call(self._stubs.feature.SearchFeatures, request, timeout))

    def contrast_features(
        self,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        sae: str = "",
        limit: int = 0,
        timeout: float | None = None,
    ) -> Contrast:
        """Find the features that are active in the positive texts and not in the negative ones."""
        request = requests.contrast_features(positive, negative, sae=sae, limit=limit)
        return decode.contrast(self._call(self._stubs.feature.ContrastFeatures, request, timeout))

    def model(self, *, timeout: float | None = None) -> ModelInfo:
        """Describe the model, its sites and the SAEs at them."""
        request = model_pb2.GetModelRequest()
        return decode.model(self._call(self._stubs.model.GetModel, request, timeout))

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Describe the server: versions, device and limits."""
        request = model_pb2.GetServerInfoRequest()
        return decode.server_info(self._call(self._stubs.model.GetServerInfo, request, timeout))

    def load(self, *, timeout: float | None = None) -> Load:
        """Tell how busy the server is now."""
        request = model_pb2.GetLoadRequest()
        return decode.load(self._call(self._stubs.model.GetLoad, request, timeout))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> TokenizedText:
        """Turn a text or a conversation into token ids."""
        request = requests.tokenize(text, messages=messages, add_special_tokens=add_special_tokens)
        return decode.tokenized(self._call(self._stubs.model.Tokenize, request, timeout))

    def detokenize(
        self,
        token_ids: Iterable[int],
        *,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """Turn token ids into text."""
        request = requests.detokenize(token_ids, skip_special_tokens=skip_special_tokens)
        answer = self._call(self._stubs.model.Detokenize, request, timeout)
        return answer.text

    def list_policies(self, *, timeout: float | None = None) -> PolicyList:
        """Tell all policies in force."""
        request = policy_pb2.ListPoliciesRequest()
        return policy_decode.policies(self._call(self._stubs.policy.ListPolicies, request, timeout))

    def get_policy(self, name: str, *, include_bundle: bool = False, timeout: float | None = None) -> Policy:
        """Tell one policy in force and, where asked for, send its bundle."""
        request = policy_pb2.GetPolicyRequest(name=name, include_bundle=include_bundle)
        return policy_decode.policy(self._call(self._stubs.policy.GetPolicy, request, timeout))

    def policy_revisions(self, name: str, *, timeout: float | None = None) -> tuple[PolicyRevision, ...]:
        """Tell the revisions that a policy had, newest first."""
        request = policy_pb2.ListPolicyRevisionsRequest(name=name)
        answer = self._call(self._stubs.policy.ListPolicyRevisions, request, timeout)
        return policy_decode.revisions(answer)

    def validate_policy(self, bundle: bytes, *, timeout: float | None = None) -> Validation:
        """Check a bundle, a tar archive, as `put_policy` would; changes nothing."""
        request = policy_pb2.ValidatePolicyRequest(bundle=bundle)
        return policy_decode.validation(self._call(self._stubs.policy.ValidatePolicy, request, timeout))

    def evaluate_policy(
        self,
        steering: Sequence[Edit] = (),
        *,
        tenant: str = "",
        roles: Sequence[str] = (),
        bundle: bytes = b"",
        uses: Mapping[str, float | None] = MappingProxyType({}),
        timeout: float | None = None,
    ) -> Decision:
        """Tell what would be decided on a request, by the policies in force or by a bundle.

        tenant, roles: who would ask; by default the caller. uses: what would be asked for beyond the
        ordinary, by its word in policies, with the value of "n" and "temperature" and None for others.
        """
        request = policy_requests.evaluate(steering, tenant=tenant, roles=roles, bundle=bundle, uses=uses)
        answer = self._call(self._stubs.policy.EvaluatePolicy, request, timeout)
        return policy_decode.decision(answer.decision)

    def put_policy(
        self, bundle: bytes, *, etag: str = "", shadow: bool = False, timeout: float | None = None
    ) -> PolicyState:
        """Put a bundle, a tar archive, in force or, as a `shadow`, beside the revision that is.

        etag: that of the policy which it shall replace, as `get_policy` tells it; empty for a new one.
        """
        request = policy_pb2.PutPolicyRequest(bundle=bundle, etag=etag, shadow=shadow)
        return policy_decode.state(self._call(self._stubs.policy.PutPolicy, request, timeout).policy)

    def roll_back_policy(
        self, name: str, digest: str, *, etag: str, timeout: float | None = None
    ) -> PolicyState:
        """Put an earlier revision in force again. digest: at least its first 8 digits."""
        request = policy_pb2.RollBackPolicyRequest(name=name, digest=digest, etag=etag)
        return policy_decode.state(self._call(self._stubs.policy.RollBackPolicy, request, timeout).policy)

    def healthy(
        self, service: str = GENERATION_SERVICE, *, timeout: float | None = HEALTH_TIMEOUT_SECONDS
    ) -> bool:
        """Whether the server says that it serves; False where it cannot be reached. Never retried."""
        return not self._why_not_ready(service, timeout)

    def _why_not_ready(self, service: str, timeout: float | None) -> str:
        try:
            answer = self._call(self._stubs.health, HealthRequest(value=service), timeout)
        except SaegisError as error:
            return why_not_ready(error)
        return why_not_ready(answer)

    def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Wait until the server says that it serves. Raises DeadlineExceeded after `timeout` seconds."""
        patience = Patience(self.target, deadline=time.monotonic() + timeout)
        once = min(timeout, HEALTH_TIMEOUT_SECONDS)
        while why := self._why_not_ready(GENERATION_SERVICE, once):
            time.sleep(patience.pause(time.monotonic(), why))

    def close(self) -> None:
        """Close the connection; calls that still run end with Cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float | None,
    ) -> Response:
        try:
            return method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._reach) from error
