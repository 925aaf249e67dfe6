"""The asyncio client."""

# A timeout is the RPC's deadline, which the server is told; asyncio.timeout could not do that. Readiness has
# no event to wait for: the server is asked until it says yes.
# ruff: noqa: ASYNC109, ASYNC110

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar, Unpack, cast

import grpc
import grpc.aio

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
from saegis.streams import AsyncStream
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

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # The generated classes take both kinds of channel at run time; the types of the asyncio kind have
        # names of their own that exist for type checkers only.
        plain = cast(grpc.Channel, channel)
        self.generation = cast(
            "generation_pb2_grpc.GenerationServiceAsyncStub", generation_pb2_grpc.GenerationServiceStub(plain)
        )
        self.feature = cast(
            "feature_pb2_grpc.FeatureServiceAsyncStub", feature_pb2_grpc.FeatureServiceStub(plain)
        )
        self.model = cast("model_pb2_grpc.ModelServiceAsyncStub", model_pb2_grpc.ModelServiceStub(plain))
        self.policy = cast("policy_pb2_grpc.PolicyServiceAsyncStub", policy_pb2_grpc.PolicyServiceStub(plain))
        self.health: grpc.aio.UnaryUnaryMultiCallable[HealthRequest, HealthResponse] = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=HealthRequest.SerializeToString,
            response_deserializer=HealthResponse.FromString,
        )


class AsyncClient(BaseClient):
    """Talks to a Saegis server from asyncio: the twin of `Client`, method for method.

        async with AsyncClient("127.0.0.1:50051") as client:
            async for chunk in client.stream("The bridge", max_tokens=32):
                print(chunk.text, end="")

    Safe to share between tasks of one event loop. `timeout` is a call's deadline in seconds; None means the
    client's, `math.inf` means none. Calls that fail raise subclasses of `saegis.SaegisError`; arguments that
    cannot be written into a request raise TypeError or ValueError.
    """

    # Made at the first call, because grpc.aio binds a channel to the event loop that runs then.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options)
        return grpc.aio.secure_channel(self.target, self._credentials, self._options)

    @cached_property
    def _stubs(self) -> _Stubs:
        return _Stubs(self._channel)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Continue a prompt, `messages` or `token_ids`; answers when everything is generated."""
        request = requests.generate(prompt, options)
        return decode.generation(await self._call(self._stubs.generation.Generate, request, timeout))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncStream:
        """Continue a prompt as `generate` does, chunk by chunk.

        Needs a running event loop; errors surface in the iteration.
        """
        loop = asyncio.get_running_loop()
        request = generation_pb2.StreamGenerateRequest(request=requests.generate(prompt, options))
        method = self._stubs.generation.StreamGenerate
        call = method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        return AsyncStream(call, loop, self._reach)

    async def score(
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
        return decode.score(await self._call(self._stubs.generation.Score, request, timeout))

    async def inspect(
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
        return decode.inspection(await self._call(self._stubs.feature.Inspect, request, timeout))

    async def get_feature(
        self, feature: int | str | FeatureRef | FeatureInfo, *, sae: str = "", timeout: float | None = None
    ) -> FeatureInfo:
        """Tell what is recorded about one feature, given by index or by exact label."""
        request = requests.get_feature(feature, sae)
        answer = await self._call(self._stubs.feature.GetFeature, request, timeout)
        return decode.feature(answer.feature)

    async def search_features(
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
        return decode.feature_page(await self._call(self._stubs.feature.SearchFeatures, request, timeout))

    async def contrast_features(
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
        return decode.contrast(await self._call(self._stubs.feature.ContrastFeatures, request, timeout))

    async def model(self, *, timeout: float | None = None) -> ModelInfo:
        """Describe the model, its sites and the SAEs at them."""
        request = model_pb2.GetModelRequest()
        return decode.model(await self._call(self._stubs.model.GetModel, request, timeout))

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Describe the server: versions, device and limits."""
        request = model_pb2.GetServerInfoRequest()
        return decode.server_info(await self._call(self._stubs.model.GetServerInfo, request, timeout))

    async def load(self, *, timeout: float | None = None) -> Load:
        """Tell how busy the server is now."""
        request = model_pb2.GetLoadRequest()
        return decode.load(await self._call(self._stubs.model.GetLoad, request, timeout))

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> TokenizedText:
        """Turn a text or a conversation into token ids."""
        request = requests.tokenize(text, messages=messages, add_special_tokens=add_special_tokens)
        return decode.tokenized(await self._call(self._stubs.model.Tokenize, request, timeout))

    async def detokenize(
        self,
        token_ids: Iterable[int],
        *,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """Turn token ids into text."""
        request = requests.detokenize(token_ids, skip_special_tokens=skip_special_tokens)
        answer = await self._call(self._stubs.model.Detokenize, request, timeout)
        return answer.text

    async def list_policies(self, *, timeout: float | None = None) -> PolicyList:
        """Tell all policies in force."""
        request = policy_pb2.ListPoliciesRequest()
        return policy_decode.policies(await self._call(self._stubs.policy.ListPolicies, request, timeout))

    async def get_policy(
        self, name: str, *, include_bundle: bool = False, timeout: float | None = None
    ) -> Policy:
        """Tell one policy in force and, where asked for, send its bundle."""
        request = policy_pb2.GetPolicyRequest(name=name, include_bundle=include_bundle)
        return policy_decode.policy(await self._call(self._stubs.policy.GetPolicy, request, timeout))

    async def policy_revisions(
        self, name: str, *, timeout: float | None = None
    ) -> tuple[PolicyRevision, ...]:
        """Tell the revisions that a policy had, newest first."""
        request = policy_pb2.ListPolicyRevisionsRequest(name=name)
        answer = await self._call(self._stubs.policy.ListPolicyRevisions, request, timeout)
        return policy_decode.revisions(answer)

    async def validate_policy(self, bundle: bytes, *, timeout: float | None = None) -> Validation:
        """Check a bundle, a tar archive, as `put_policy` would; changes nothing."""
        request = policy_pb2.ValidatePolicyRequest(bundle=bundle)
        return policy_decode.validation(await self._call(self._stubs.policy.ValidatePolicy, request, timeout))

    async def evaluate_policy(
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
        answer = await self._call(self._stubs.policy.EvaluatePolicy, request, timeout)
        return policy_decode.decision(answer.decision)

    async def put_policy(
        self, bundle: bytes, *, etag: str = "", shadow: bool = False, timeout: float | None = None
    ) -> PolicyState:
        """Put a bundle, a tar archive, in force or, as a `shadow`, beside the revision that is.

        etag: that of the policy which it shall replace, as `get_policy` tells it; empty for a new one.
        """
        request = policy_pb2.PutPolicyRequest(bundle=bundle, etag=etag, shadow=shadow)
        answer = await self._call(self._stubs.policy.PutPolicy, request, timeout)
        return policy_decode.state(answer.policy)

    async def roll_back_policy(
        self, name: str, digest: str, *, etag: str, timeout: float | None = None
    ) -> PolicyState:
        """Put an earlier revision in force again. digest: at least its first 8 digits."""
        request = policy_pb2.RollBackPolicyRequest(name=name, digest=digest, etag=etag)
        answer = await self._call(self._stubs.policy.RollBackPolicy, request, timeout)
        return policy_decode.state(answer.policy)

    async def healthy(
        self, service: str = GENERATION_SERVICE, *, timeout: float | None = HEALTH_TIMEOUT_SECONDS
    ) -> bool:
        """Whether the server says that it serves; False where it cannot be reached. Never retried."""
        return not await self._why_not_ready(service, timeout)

    async def _why_not_ready(self, service: str, timeout: float | None) -> str:
        try:
            answer = await self._call(self._stubs.health, HealthRequest(value=service), timeout)
        except SaegisError as error:
            return why_not_ready(error)
        return why_not_ready(answer)

    async def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Wait until the server says that it serves. Raises DeadlineExceeded after `timeout` seconds."""
        patience = Patience(self.target, deadline=time.monotonic() + timeout)
        once = min(timeout, HEALTH_TIMEOUT_SECONDS)
        while why := await self._why_not_ready(GENERATION_SERVICE, once):
            await asyncio.sleep(patience.pause(time.monotonic(), why))

    async def close(self) -> None:
        """Close the connection; calls that still run end with Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
    ) -> Response:
        try:
            return await method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._reach) from error
