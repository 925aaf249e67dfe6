"""FeatureService: where features fire, what is recorded about them, and which ones distinguish texts."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from saegis.v1 import feature_pb2 as pb
from saegis.v1 import feature_pb2_grpc, prompt_pb2, steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.engine.pictures import Placed
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.giving_way import paced
from saegis_server.rpc.server.logs import request_id
from saegis_server.rpc.server.threads import stop_if_unwanted
from saegis_server.rpc.services.feature_contrast import contrast_message
from saegis_server.rpc.services.feature_reading import TextReading, parts, windows
from saegis_server.rpc.services.feature_search import Found, next_page_token, offset_of
from saegis_server.rpc.services.feature_usage import check_usage, sampled_usage, watched_usage
from saegis_server.rpc.services.pictures import SeenPicture, at_places, placed, uses_of
from saegis_server.rpc.services.run import RequestSummary
from saegis_server.rpc.services.shared import Context, Servicer
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.programs import RequestSteering
from saegis_server.rpc.wire.prompts import PromptReader, check_characters, check_length, check_size
from saegis_server.sae.catalog import FoundFeature, LoadedSAE
from saegis_server.sae.contrast import Firings
from saegis_server.sae.left_out import left_out
from saegis_server.sae.neighbours import MOST_NUMBERS, is_searchable, neighbours
from saegis_server.steering.program import UNSTEERED

DEFAULT_TOP_K, LARGEST_TOP_K = 5, 1000
DEFAULT_PAGE, LARGEST_PAGE = 20, 1000
#: The most texts that one contrast compares, both sides together.
LARGEST_CONTRAST = 512
#: The most characters of a language's name.
LONGEST_LANGUAGE = 35
#: The most characters of one side's texts, unless a single text may have more.
LONGEST_CONTRAST = 2**20
#: The most features that one Inspect returns, over all tokens, and the most values of features.
LARGEST_INSPECT, MOST_VALUES = 100_000, 500_000
#: The most features whose values one Inspect returns, and the most tokens of a long text.
MOST_VALUED, LONGEST_INSPECT = 256, 65_536
#: Of how many tokens an answer is told between two rests.
TOLD_AT_ONCE = 128
#: How many neighbours of a feature are told at most.
MOST_NEIGHBOURS = 100
#: The most characters and words of a search.
LONGEST_QUERY, MOST_QUERY_WORDS = 1024, 32


@serves(pb.DESCRIPTOR.services_by_name["FeatureService"])
class FeatureServicer(Servicer, feature_pb2_grpc.FeatureServiceServicer):
    """Finds features and shows where they fire."""

    @needs(Role.INSPECT, large=True)
    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """The strongest features of each token."""
        services, length = self.services, self.services.engine.max_length
        site = services.targets.site(request.site, "site") if request.site else None
        loaded = services.catalog.sae(request.sae, "sae", site, "site")
        values_of = self._values_of(request, loaded)
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        _check_range("top_k", top_k, 0 if values_of else 1, LARGEST_TOP_K)
        most = max(length, LONGEST_INSPECT) if request.long_text else length
        kind = request.WhichOneof("input")
        check_size(request, kind, most)
        looked = await services.pictures.look(request.chat, "chat") if kind == "chat" else ()
        shown = [each.shown for each in looked]
        read = await services.in_thread(services.prompts.see, request, kind, False, "", shown)
        tokens, pictures = read.tokens, at_places(looked, read.pictures)
        check_length(tokens, str(kind), most, completion=0)
        _check_told(len(tokens), top_k, len(values_of))
        if pictures and len(tokens) > length:
            raise FieldError(
                "long_text", "a conversation with pictures is read whole; it must fit the context"
            )
        await self._decide("Inspect", tokens, pictures=pictures)
        reading = await services.in_thread(TextReading, loaded, top_k, values_of)
        pieces = windows(tokens, length, services.engine.first_token.begins(tokens))
        for window in pieces:
            x = await self._activations(window.tokens, loaded, placed(pictures))
            await services.in_thread(reading.add, x[window.seen :])
        inspected = await services.in_thread(self._inspected, tokens, loaded, reading, len(pieces))
        inspected.pictures.extend(each.told for each in pictures)
        return inspected

    def _values_of(self, request: pb.InspectRequest, loaded: LoadedSAE) -> list[FoundFeature]:
        """The features whose values are asked for. Raises FieldError and the catalog's errors."""
        if len(request.features) > MOST_VALUED:
            raise FieldError("features", f"at most {MOST_VALUED}, not {len(request.features)}")
        found = []
        for position, reference in enumerate(request.features):
            named = steering_pb2.FeatureRef()
            named.CopyFrom(reference)
            named.sae = reference.sae or loaded.id
            feature = self.services.targets.feature(named, f"features[{position}]")
            if feature.loaded is not loaded:
                raise FieldError(f"features[{position}].sae", f"must be {loaded.id}, which reads the text")
            found.append(feature)
        return found

    def _inspected(
        self, tokens: tuple[int, ...], loaded: LoadedSAE, reading: TextReading, windows_read: int
    ) -> pb.InspectResponse:
        left_out, texts = self._left_out(tokens, loaded).tolist(), self.services.prompts.pieces(tokens)
        response = pb.InspectResponse(sae=loaded.id, site=str(loaded.site), windows=windows_read)
        response.values.extend(reading.values)
        rows = list(zip(tokens, texts, reading.strongest, left_out, strict=True))
        for begin in paced(range(0, len(rows), TOLD_AT_ONCE)):
            for token, text, features, left in rows[begin : begin + TOLD_AT_ONCE]:
                response.tokens.add(token_id=token, text=text, features=features, left_out=left)
        return response

    @needs(Role.INSPECT)
    async def GetFeature(self, request: pb.GetFeatureRequest, context: Context) -> pb.GetFeatureResponse:
        """What is recorded about one feature, and where it fires."""
        found = self.services.targets.feature(request.feature, "feature")
        examples, told = found.loaded.examples, pb.GetFeatureResponse(feature=convert.feature(found))
        if request.neighbour_count:
            told.neighbours.extend(await self._neighbours(found, request.neighbour_count))
        if examples is not None:
            histogram = examples.histogram(found.index)
            told.histogram.bin_width, told.histogram.tokens = histogram.width, histogram.tokens
            told.histogram.counts.extend(histogram.counts)
            for piece in examples.pieces(found.index):
                texts = self.services.prompts.pieces(piece.tokens)
                told.examples.add(tokens=texts, activations=piece.activations, strongest=piece.strongest)
        return told

    async def _neighbours(self, found: FoundFeature, count: int) -> list[pb.FeatureNeighbour]:
        """The nearest features of the same SAE. Raises FieldError."""
        loaded, field = found.loaded, "neighbour_count"
        _check_range(field, count, 1, MOST_NEIGHBOURS)
        if not is_searchable(loaded.sae):
            raise FieldError(
                field, f"the decoder of the SAE {loaded.id} has more than {MOST_NUMBERS} numbers"
            )
        nearest = await self.services.in_thread(neighbours, loaded.sae, found.index, count, paced)
        by_index = self.services.catalog.by_index
        return [
            pb.FeatureNeighbour(
                feature=convert.feature(by_index(loaded, neighbour.feature, field)), cosine=neighbour.cosine
            )
            for neighbour in nearest
        ]

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
        _check_contrast(request)
        loaded = self.services.catalog.sae(request.sae, "sae")
        positive_texts = await self._texts("positive_texts", request.positive_texts, loaded)
        negative_texts = await self._texts("negative_texts", request.negative_texts, loaded)
        on, off = await self._pictures(request.positive_images, request.negative_images)
        tokens = [*positive_texts, *negative_texts, *(each.shown.tokens for each in (*on, *off))]
        await self._decide("ContrastFeatures", *tokens, pictures=(*on, *off))
        positive = await self._firings(positive_texts, loaded) + await self._firings_in(on, loaded)
        negative = await self._firings(negative_texts, loaded) + await self._firings_in(off, loaded)
        most = request.max_q_value if request.HasField("max_q_value") else 1.0
        languages = (*request.positive_languages, *request.negative_languages)
        make = partial(contrast_message, positive, negative, loaded, limit, most, languages)
        return await self.services.in_thread(make)

    @needs(Role.OPERATE, large=True)
    async def GetFeatureUsage(
        self, request: pb.GetFeatureUsageRequest, context: Context
    ) -> pb.GetFeatureUsageResponse:
        """The features that fire most. It tells of everybody's texts, and so is for operators."""
        services, limit = self.services, request.limit or DEFAULT_PAGE
        _check_range("limit", limit, 1, LARGEST_PAGE)
        check_usage(request, services.metrics.tenants)
        loaded = services.catalog.sae(request.sae, "sae")
        if request.source == pb.USAGE_SOURCE_WATCHED:
            series, began = services.metrics.features, services.started
            return watched_usage(request, loaded, series, began, time.time(), limit)
        return await services.in_thread(sampled_usage, request, loaded, services.usage, limit)

    async def _texts(self, path: str, texts: Sequence[str], loaded: LoadedSAE) -> list[tuple[int, ...]]:
        """The tokens of one side's texts."""
        services = self.services
        characters = sum(map(len, texts))
        check_characters(path, characters, max(services.longest_text, LONGEST_CONTRAST))
        prompts = await services.in_thread(_tokenized, services.prompts, texts)
        for position, tokens in enumerate(prompts):
            services.prompts.without_places(tokens, f"{path}[{position}]")
            if bool(self._left_out(tokens, loaded).all()):
                raise FieldError(f"{path}[{position}]", "must have at least one token that is read")
            check_length(tokens, f"{path}[{position}]", services.engine.max_length, completion=0)
        return prompts

    async def _firings(self, prompts: Sequence[tuple[int, ...]], loaded: LoadedSAE) -> list[Firings]:
        """What fires in each text."""
        firings = []
        for tokens in prompts:
            x = (await self._activations(tokens, loaded)).cpu()[~self._left_out(tokens, loaded)]
            firings.append(await self.services.in_thread(_firings, loaded, x))
        return firings

    async def _pictures(
        self, positive: Sequence[prompt_pb2.Image], negative: Sequence[prompt_pb2.Image]
    ) -> tuple[Sequence[SeenPicture], Sequence[SeenPicture]]:
        """The pictures of both sides."""
        desk = self.services.pictures
        if (given := len(positive) + len(negative)) > desk.most > 0:
            raise FieldError("positive_images", f"{given} pictures in all; a request may have {desk.most}")
        on = await desk.look_at(positive, "positive_images")
        return on, await desk.look_at(negative, "negative_images")

    async def _firings_in(self, pictures: Sequence[SeenPicture], loaded: LoadedSAE) -> list[Firings]:
        """What fires in each picture, read by itself, at the tokens at which the model is shown it."""
        opening, firings = self.services.prompts.text(""), []
        for each in pictures:
            alone = Placed(len(opening), each.shown)
            tokens = (*opening, *each.shown.tokens)
            check_length(tokens, "positive_images", self.services.engine.max_length, completion=0)
            at = torch.tensor(each.shown.places) + alone.start
            x = (await self._activations(tokens, loaded, (alone,))).cpu()[at]
            firings.append(await self.services.in_thread(_firings, loaded, x))
        return firings

    def _left_out(self, tokens: tuple[int, ...], loaded: LoadedSAE) -> Tensor:
        """Which tokens of a text contrasts and statistics leave out, bool [T]."""
        first = self.services.engine.first_token.left_out(tokens)
        return left_out(tokens, loaded.sae, self.services.prompts.special, first)

    async def _decide(
        self, method: str, *prompts: tuple[int, ...], pictures: Sequence[SeenPicture] = ()
    ) -> None:
        """Let the policies decide whether unruled activations may be shown, and record the decision.

        Raises PolicyDeniedError and AuditUnavailableError.
        """

        def text() -> str:
            decode = self.services.prompts.decode
            return "\n".join(decode(tokens, skip_special_tokens=False) for tokens in prompts)

        path = "chat.messages" if method == "Inspect" else "positive_images"
        uses, recorded = (
            (UseOfRequest(Use.INSPECT), *uses_of(pictures, path)),
            [each.recorded for each in pictures],
        )
        summary = RequestSummary(
            method, request_id.get(), sum(map(len, prompts)), text, uses, tuple(recorded)
        )
        await self.services.governor.permit(summary, RequestSteering(UNSTEERED))

    async def _activations(
        self, tokens: tuple[int, ...], loaded: LoadedSAE, pictures: Sequence[Placed] = ()
    ) -> Tensor:
        """The unsteered activations of some tokens at an SAE's site, [T, d]."""
        caller = current_identity()
        self.services.limiter.spend(caller, "tokens", len(tokens))
        captured = await asyncio.wrap_future(self.services.engine.capture(tokens, caller.tenant, pictures))
        x: Tensor = captured[loaded.site]
        return x


def _check_range(path: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise FieldError(path, f"must be between {least} and {most}, not {value}")


def _check_told(tokens: int, top_k: int, valued: int) -> None:
    """Raise FieldError where more than is told of one text is asked for."""
    if tokens * top_k > LARGEST_INSPECT:
        most = LARGEST_INSPECT // tokens
        raise FieldError("top_k", f"at most {most} for each of {tokens} tokens, not {top_k}")
    if tokens * valued > MOST_VALUES:
        most = MOST_VALUES // tokens
        raise FieldError("features", f"at most {most} for each of {tokens} tokens, not {valued}")


def _check_contrast(request: pb.ContrastFeaturesRequest) -> None:
    """Raise FieldError for more texts than are compared, languages that are not one a text, and a bound of q
    that is no share."""
    count = len(request.positive_texts) + len(request.negative_texts)
    if count > LARGEST_CONTRAST:
        raise FieldError("positive_texts", f"at most {LARGEST_CONTRAST} texts on both sides, not {count}")
    named = len(request.positive_languages) + len(request.negative_languages)
    for side in ("positive", "negative"):
        texts, languages = getattr(request, f"{side}_texts"), getattr(request, f"{side}_languages")
        images = getattr(request, f"{side}_images")
        if not texts and not images:
            raise FieldError(f"{side}_texts", "must have at least one text, or one of the images")
        if named and images:
            raise FieldError(f"{side}_languages", "are of texts alone: pictures have none")
        if named and len(languages) != len(texts):
            wrong = f"must name the language of each of {len(texts)} texts, not of {len(languages)}"
            raise FieldError(f"{side}_languages", wrong)
        for position, language in enumerate(languages):
            if not 0 < len(language) <= LONGEST_LANGUAGE:
                described = f"must have between 1 and {LONGEST_LANGUAGE} characters"
                raise FieldError(f"{side}_languages[{position}]", described)
    if request.HasField("max_q_value") and not 0.0 < request.max_q_value <= 1.0:
        raise FieldError("max_q_value", f"must be above 0 and at most 1, not {request.max_q_value}")


def _tokenized(prompts: PromptReader, texts: Sequence[str]) -> list[tuple[int, ...]]:
    tokenized = []
    for text in texts:
        stop_if_unwanted()
        tokenized.append(prompts.text(text))
    return tokenized


@torch.inference_mode()
def _firings(loaded: LoadedSAE, x: Tensor) -> Firings:
    """The features that fire at any of the tokens x [T, d]."""
    largest = torch.zeros(loaded.sae.features)
    for part in parts(x):
        largest = torch.maximum(largest, loaded.sae.encode(part).amax(0).cpu())
    return Firings.of(largest)
