"""FeatureService: where features fire, what is recorded about them, and which ones distinguish texts."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis.v1 import feature_pb2 as pb
from saegis.v1 import feature_pb2_grpc
from saegis_server.engine.api import FieldError
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.interceptor import request_id
from saegis_server.rpc.server.threads import stop_if_unwanted
from saegis_server.rpc.services.feature_search import Found, next_page_token, offset_of
from saegis_server.rpc.services.run import RequestSummary
from saegis_server.rpc.services.shared import Context, Servicer
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.programs import RequestSteering
from saegis_server.rpc.wire.prompts import PromptReader, check_characters, check_length, check_size
from saegis_server.sae.catalog import FoundFeature, LoadedSAE
from saegis_server.sae.left_out import left_out
from saegis_server.steering.program import UNSTEERED

DEFAULT_TOP_K, LARGEST_TOP_K = 5, 1000
DEFAULT_PAGE, LARGEST_PAGE = 20, 1000
#: The most texts that one contrast compares, both sides together.
LARGEST_CONTRAST = 512
#: The most characters of one side's texts, unless a single text may have more.
LONGEST_CONTRAST = 2**20
#: The most features that one Inspect returns, over all tokens.
LARGEST_INSPECT = 100_000
#: The most characters and words of a search.
LONGEST_QUERY, MOST_QUERY_WORDS = 1024, 32
#: How many tokens are encoded at once: at a million features this takes 256 MB.
ENCODED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Side:
    """What each feature does over a set of texts, float32 [m].

    mean: the mean over texts of the largest activation in each; rate: the share of texts in which it fires.
    """

    mean: Tensor
    rate: Tensor


def side(largest: Tensor) -> Side:
    """One side, from the largest activation of each feature in each text [texts, m]."""
    return Side(largest.mean(0), (largest > 0.0).to(torch.float32).mean(0))


def contrast(positive: Side, negative: Side, limit: int, loaded: LoadedSAE) -> list[pb.FeatureContrast]:
    """The features that distinguish the positive side, best first, at most `limit`.

    The score is the firing rate in the positive texts minus that in the negative ones. Ties are ordered by
    the difference of the means, then by index. Features that do not lean to the positive side are left out.
    """
    score = positive.rate - negative.rate
    lead = positive.mean - negative.mean
    leaning = ((score > 0.0) | ((score == 0.0) & (lead > 0.0))).nonzero().squeeze(-1)
    ranked = sorted(
        zip(leaning.tolist(), score[leaning].tolist(), lead[leaning].tolist(), strict=True),
        key=lambda row: (-row[1], -row[2], row[0]),
    )

    def side_message(side: Side, index: int) -> pb.ContrastSide:
        return pb.ContrastSide(mean_activation=float(side.mean[index]), firing_rate=float(side.rate[index]))

    return [
        pb.FeatureContrast(
            feature=convert.feature(FoundFeature(loaded, index, loaded.labels.get(index))),
            score=value,
            positive=side_message(positive, index),
            negative=side_message(negative, index),
        )
        for index, value, _ in ranked[:limit]
    ]


@serves(pb.DESCRIPTOR.services_by_name["FeatureService"])
class FeatureServicer(Servicer, feature_pb2_grpc.FeatureServiceServicer):
    """Finds features and shows where they fire."""

    @needs(Role.INSPECT, large=True)
    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """The strongest features of each token."""
        services = self.services
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        _check_range("top_k", top_k, 1, LARGEST_TOP_K)
        site = services.targets.site(request.site, "site") if request.site else None
        loaded = services.catalog.sae(request.sae, "sae", site, "site")
        kind = request.WhichOneof("input")
        check_size(request, kind, services.engine.max_length)
        tokens = await services.in_thread(services.prompts.read, request, kind, False)
        check_length(tokens, str(kind), services.engine.max_length, completion=0)
        if len(tokens) * top_k > LARGEST_INSPECT:
            reason = f"at most {LARGEST_INSPECT // len(tokens)} for each of {len(tokens)} tokens, not {top_k}"
            raise FieldError("top_k", reason)
        await self._decide("Inspect", tokens)
        x = await self._activations(tokens, loaded)
        return await services.in_thread(self._inspected, tokens, loaded, x, top_k)

    def _inspected(
        self, tokens: tuple[int, ...], loaded: LoadedSAE, x: Tensor, top_k: int
    ) -> pb.InspectResponse:
        strongest = _strongest(loaded, x, top_k)
        left_out, texts = self._left_out(tokens, loaded).tolist(), self.services.prompts.pieces(tokens)
        response = pb.InspectResponse(sae=loaded.id, site=str(loaded.site))
        for token, text, features, left in zip(tokens, texts, strongest, left_out, strict=True):
            response.tokens.add(token_id=token, text=text, features=features, left_out=left)
        return response

    @needs(Role.INSPECT)
    async def GetFeature(self, request: pb.GetFeatureRequest, context: Context) -> pb.GetFeatureResponse:
        """What is recorded about one feature."""
        feature = self.services.targets.feature(request.feature, "feature")
        return pb.GetFeatureResponse(feature=convert.feature(feature))

    @needs(Role.INSPECT)
    async def SearchFeatures(
        self, request: pb.SearchFeaturesRequest, context: Context
    ) -> pb.SearchFeaturesResponse:
        """One page of the features whose labels match."""
        size = request.page_size or DEFAULT_PAGE
        _check_range("page_size", size, 1, LARGEST_PAGE)
        if len(request.query) > LONGEST_QUERY or len(request.query.split()) > MOST_QUERY_WORDS:
            described = f"at most {LONGEST_QUERY} characters and {MOST_QUERY_WORDS} words"
            raise FieldError("query", described)
        catalog = self.services.catalog
        entries = (catalog.sae(request.sae, "sae"),) if request.sae else catalog.entries
        begin = offset_of(request.page_token, request.query, request.sae)
        found = await self.services.in_thread(Found, entries, request.query)
        end = begin + size
        more = next_page_token(end, request.query, request.sae) if end < len(found) else ""
        return pb.SearchFeaturesResponse(
            features=[convert.feature(match) for match in found.page(begin, end)],
            next_page_token=more,
            total_size=len(found),
        )

    @needs(Role.INSPECT, large=True)
    async def ContrastFeatures(
        self, request: pb.ContrastFeaturesRequest, context: Context
    ) -> pb.ContrastFeaturesResponse:
        """The features that fire in the positive and not in the negative texts."""
        limit = request.limit or DEFAULT_PAGE
        _check_range("limit", limit, 1, LARGEST_PAGE)
        count = len(request.positive_texts) + len(request.negative_texts)
        if count > LARGEST_CONTRAST:
            raise FieldError("positive_texts", f"at most {LARGEST_CONTRAST} texts on both sides, not {count}")
        loaded = self.services.catalog.sae(request.sae, "sae")
        positive_texts = await self._texts("positive_texts", request.positive_texts, loaded)
        negative_texts = await self._texts("negative_texts", request.negative_texts, loaded)
        await self._decide("ContrastFeatures", *positive_texts, *negative_texts)
        positive = await self._side(positive_texts, loaded)
        negative = await self._side(negative_texts, loaded)
        contrasts = await self.services.in_thread(contrast, positive, negative, limit, loaded)
        return pb.ContrastFeaturesResponse(sae=loaded.id, features=contrasts)

    async def _texts(self, path: str, texts: Sequence[str], loaded: LoadedSAE) -> list[tuple[int, ...]]:
        """The tokens of one side's texts."""
        if not texts:
            raise FieldError(path, "must have at least one text")
        services = self.services
        characters = sum(map(len, texts))
        check_characters(path, characters, max(services.longest_text, LONGEST_CONTRAST))
        prompts = await services.in_thread(_tokenized, services.prompts, texts)
        for position, tokens in enumerate(prompts):
            if bool(self._left_out(tokens, loaded).all()):
                raise FieldError(f"{path}[{position}]", "must have at least one token that is read")
            check_length(tokens, f"{path}[{position}]", services.engine.max_length, completion=0)
        return prompts

    async def _side(self, prompts: Sequence[tuple[int, ...]], loaded: LoadedSAE) -> Side:
        largest = []
        for tokens in prompts:
            x = (await self._activations(tokens, loaded)).cpu()[~self._left_out(tokens, loaded)]
            largest.append(await self.services.in_thread(_largest, loaded, x))
        return side(torch.stack(largest))

    def _left_out(self, tokens: tuple[int, ...], loaded: LoadedSAE) -> Tensor:
        """Which tokens of a text contrasts and statistics leave out, bool [T]."""
        first = self.services.engine.first_token.left_out(tokens)
        return left_out(tokens, loaded.sae, self.services.prompts.special, first)

    async def _decide(self, method: str, *prompts: tuple[int, ...]) -> None:
        """Let the policies decide whether unruled activations may be shown, and record the decision.

        Raises PolicyDeniedError and AuditUnavailableError.
        """

        def text() -> str:
            decode = self.services.prompts.decode
            return "\n".join(decode(tokens, skip_special_tokens=False) for tokens in prompts)

        summary = RequestSummary(
            method, request_id.get(), sum(map(len, prompts)), text, (UseOfRequest(Use.INSPECT),)
        )
        await self.services.governor.permit(summary, RequestSteering(UNSTEERED))

    async def _activations(self, tokens: tuple[int, ...], loaded: LoadedSAE) -> Tensor:
        """The unsteered activations of some tokens at an SAE's site, [T, d]."""
        caller = current_identity()
        self.services.limiter.spend(caller, "tokens", len(tokens))
        captured = await asyncio.wrap_future(self.services.engine.capture(tokens, caller.tenant))
        x: Tensor = captured[loaded.site]
        return x


def _check_range(path: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise FieldError(path, f"must be between {least} and {most}, not {value}")


def _tokenized(prompts: PromptReader, texts: Sequence[str]) -> list[tuple[int, ...]]:
    tokenized = []
    for text in texts:
        stop_if_unwanted()
        tokenized.append(prompts.text(text))
    return tokenized


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Activations [T, d] in parts. Raises UnwantedError once nobody waits for the result."""
    for part in torch.split(x.cpu(), ENCODED_AT_ONCE):
        stop_if_unwanted()
        yield part


@torch.inference_mode()
def _largest(loaded: LoadedSAE, x: Tensor) -> Tensor:
    """The largest activation of each feature over tokens x [T, d]: [m]."""
    parts = [loaded.sae.encode(part).amax(0) for part in _parts(x)]
    return torch.stack(parts).amax(0)


@torch.inference_mode()
def _strongest(loaded: LoadedSAE, x: Tensor, top_k: int) -> list[list[pb.FeatureActivation]]:
    """The active features of each token of x [T, d], strongest first, at most `top_k`."""
    count = min(top_k, loaded.sae.features)
    strongest = []
    for part in _parts(x):
        values, indices = loaded.sae.encode(part).topk(count, dim=-1)
        for strengths, features in zip(values.tolist(), indices.tolist(), strict=True):
            active = [pair for pair in zip(features, strengths, strict=True) if pair[1] > 0.0]
            strongest.append([_activation(loaded, index, value) for index, value in active])
    return strongest


def _activation(loaded: LoadedSAE, index: int, value: float) -> pb.FeatureActivation:
    label = loaded.labels.get(index)
    return pb.FeatureActivation(index=index, activation=value, label=label.label if label else "")
