"""FeatureService: where features fire, what is recorded about them, and which ones distinguish texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from saegis.base import BaseClient
from saegis.messages import ChatMessage, feature_message, put, result, set_prompt
from saegis.pictures import Image
from saegis.rpc import rpc
from saegis.steering import Direction, FeatureInfo, FeatureRef, Phase, as_target
from saegis.usage import UsageBaseline, UsageOrder, UsageSource, usage_report, usage_request
from saegis.v1 import feature_pb2 as pb
from saegis.v1 import prompt_pb2


@dataclass(frozen=True, slots=True)
class FeatureActivation:
    """One feature's activation at one token, in feature units."""

    index: int
    activation: float
    label: str


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """One token and its strongest features, strongest first."""

    token_id: int
    text: str
    features: tuple[FeatureActivation, ...]
    left_out: bool = False
    """Whether contrasts and statistics leave the token out, since the SAE was hardly trained on it."""


@dataclass(frozen=True, slots=True)
class FeatureValues:
    """One feature's activation at each token of a text, in feature units; 0 where it is not active."""

    index: int
    label: str
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PictureGrid:
    """Tokens that lie on a part of a picture in rows, from its upper left, without gaps."""

    first_token: int
    """Counted from 0 in the text."""
    rows: int
    columns: int
    left: float
    """The part's bounds, in shares of the picture's width and height."""
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """A picture's tokens, and how they lie on it."""

    digest: str
    """SHA-256 of its file, in hexadecimal."""
    width: int
    height: int
    first_token: int
    """Counted from 0 in the text."""
    token_count: int
    grids: tuple[PictureGrid, ...]
    """One for a picture that is read whole; for one that is cut, one of each tile and of the whole last."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer to `inspect`: the tokens of a text with their features, as one SAE reads them."""

    sae: str
    site: str
    tokens: tuple[TokenFeatures, ...]
    values: tuple[FeatureValues, ...] = ()
    """Those of the features that were asked for, in their order."""
    windows: int = 1
    """In how many windows the text was read: 1 if it fits into the model's context."""
    pictures: tuple[PictureTokens, ...] = ()
    """Those of a conversation, in the order of its tokens."""

    def __iter__(self) -> Iterator[TokenFeatures]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class ActivationHistogram:
    """How often a feature fires how strongly, over the texts from which its examples were gathered."""

    bin_width: float
    """In feature units: bin i holds activations from i widths up to but not including i + 1."""
    counts: tuple[int, ...]
    """How many tokens are in each bin. Tokens at which the feature does not fire are in none."""
    tokens: int
    """How many tokens were read."""


@dataclass(frozen=True, slots=True)
class FeatureExample:
    """A piece of a text in which a feature fires strongly."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """The feature's activation at each token, in feature units."""
    strongest: int
    """The token at which the feature is strongest, counted from 0."""


@dataclass(frozen=True, slots=True)
class FeatureDetails(FeatureInfo):
    """The answer to `get_feature`: what is recorded about a feature, and where it fires."""

    histogram: ActivationHistogram | None = None
    """None if nobody gathered it."""
    examples: tuple[FeatureExample, ...] = ()
    """Strongest first, each of another text."""


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """One page of the answer to `search_features`."""

    features: tuple[FeatureInfo, ...]
    next_page_token: str
    """The `page_token` of the next page; empty if there is none."""
    total_size: int
    """How many features match, over all pages."""

    def __iter__(self) -> Iterator[FeatureInfo]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class ContrastSide:
    """One feature's behaviour over one set of texts."""

    mean_activation: float
    """The mean over texts of the largest activation in each, in feature units."""
    firing_rate: float
    """The share of texts in which the feature is active at all, from 0 to 1."""
    deviation: float
    """The standard deviation over texts of the largest activation in each; 0 for a single text."""
    firing_rate_by_language: Mapping[str, float]
    """The firing rate by language, if languages were given."""


@dataclass(frozen=True, slots=True)
class FeatureContrast:
    """How one feature differs between two sets of texts."""

    feature: FeatureInfo
    score: float
    """Firing rate in the positive texts minus that in the negative ones, from -1 to 1."""
    positive: ContrastSide
    negative: ContrastSide
    separation: float
    """The chance that it is stronger in a positive text than in a negative one; 0.5 tells nothing."""
    standardized_difference: float | None
    """The difference of the means over the pooled standard deviation (Hedges' g); None without spread."""
    p_value: float
    """The chance of such a separation if the sets were alike, by the one-sided test of Mann and Whitney."""
    q_value: float
    """The share of false discoveries among all features with a p value no greater."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The answer to `contrast_features`, highest score first."""

    sae: str
    features: tuple[FeatureContrast, ...]
    tested: int
    """How many features are active in any of the texts."""

    def __iter__(self) -> Iterator[FeatureContrast]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


def _inspection(message: pb.InspectResponse) -> Inspection:
    tokens = tuple(
        result(
            TokenFeatures,
            token,
            features=tuple(result(FeatureActivation, feature) for feature in token.features),
        )
        for token in message.tokens
    )
    values = tuple(result(FeatureValues, feature) for feature in message.values)
    pictures = tuple(
        result(PictureTokens, each, grids=tuple(result(PictureGrid, grid) for grid in each.grids))
        for each in message.pictures
    )
    return result(Inspection, message, tokens=tokens, values=values, pictures=pictures)


def _feature(message: pb.GetFeatureResponse) -> FeatureDetails:
    gathered = message.HasField("histogram")
    return result(
        FeatureDetails,
        message.feature,
        histogram=result(ActivationHistogram, message.histogram) if gathered else None,
        examples=tuple(result(FeatureExample, example) for example in message.examples),
    )


def _page(message: pb.SearchFeaturesResponse) -> FeaturePage:
    features = tuple(result(FeatureInfo, feature) for feature in message.features)
    return result(FeaturePage, message, features=features)


def _contrast(message: pb.ContrastFeaturesResponse) -> Contrast:
    features = tuple(
        result(
            FeatureContrast,
            contrast,
            feature=result(FeatureInfo, contrast.feature),
            positive=result(ContrastSide, contrast.positive),
            negative=result(ContrastSide, contrast.negative),
        )
        for contrast in message.features
    )
    return result(Contrast, message, features=features)


def _reference(feature: int | str | FeatureRef | FeatureInfo) -> FeatureRef:
    target = as_target(feature)
    if isinstance(target, Direction):
        raise TypeError("a direction is no feature")
    return target


class FeatureMethods(BaseClient):
    """The methods of both clients that call FeatureService."""

    @rpc(lambda stubs: stubs.feature.Inspect, _inspection)
    def inspect(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Sequence[int] | None = None,
        sae: str = "",
        site: str = "",
        top_k: int | None = None,
        features: Sequence[int | str | FeatureRef | FeatureInfo] = (),
        long_text: bool = False,
        timeout: float | None = None,
    ) -> pb.InspectRequest:
        """Return the `top_k` strongest features of each token of a text, a conversation or token ids.

        features: features whose values are returned at every token; with some, `top_k` may be 0. long_text:
        read a text that is longer than the model's context in windows, in which each token sees at least
        half a context before it.
        """
        request = pb.InspectRequest(sae=sae, site=site, long_text=long_text)
        request.features.extend(feature_message(_reference(feature)) for feature in features)
        set_prompt(request, text, messages, token_ids)
        put(request, "top_k", top_k)
        return request

    @rpc(lambda stubs: stubs.feature.GetFeature, _feature)
    def get_feature(
        self, feature: int | str | FeatureRef | FeatureInfo, *, sae: str = "", timeout: float | None = None
    ) -> pb.GetFeatureRequest:
        """Return what is recorded about one feature, given by index or by exact label, and where it fires."""
        target = _reference(feature)
        if sae and target.sae not in ("", sae):
            raise ValueError(f"sae is {sae!r} but the feature belongs to {target.sae!r}")
        return pb.GetFeatureRequest(feature=feature_message(FeatureRef(target.selector, sae or target.sae)))

    @rpc(lambda stubs: stubs.feature.SearchFeatures, _page)
    def search_features(
        self,
        query: str = "",
        *,
        sae: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> pb.SearchFeaturesRequest:
        """Find features by words of their labels, best first. An empty query finds every labelled one."""
        request = pb.SearchFeaturesRequest(query=query, sae=sae, page_token=page_token)
        put(request, "page_size", page_size)
        return request

    @rpc(lambda stubs: stubs.feature.ContrastFeatures, _contrast)
    def contrast_features(
        self,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        sae: str = "",
        limit: int = 0,
        positive_languages: Sequence[str] = (),
        negative_languages: Sequence[str] = (),
        max_q_value: float | None = None,
        positive_images: Sequence[Image] = (),
        negative_images: Sequence[Image] = (),
        timeout: float | None = None,
    ) -> pb.ContrastFeaturesRequest:
        """Find the features that are active in the positive texts and not in the negative ones.

        Pictures are further texts, each by itself. The languages are those of the texts, one each, for rates
        by language; beside pictures there are none. With `max_q_value` only features are returned of which at
        most this share is expected to be false.
        """
        request = pb.ContrastFeaturesRequest(sae=sae)
        put(request, "positive_languages", positive_languages)
        put(request, "negative_languages", negative_languages)
        put(request, "max_q_value", max_q_value)
        put(request, "positive_texts", positive)
        put(request, "negative_texts", negative)
        put(request, "limit", limit)
        request.positive_images.extend(prompt_pb2.Image(data=each.data) for each in positive_images)
        request.negative_images.extend(prompt_pb2.Image(data=each.data) for each in negative_images)
        return request

    @rpc(lambda stubs: stubs.feature.GetFeatureUsage, usage_report)
    def get_feature_usage(
        self,
        *,
        sae: str = "",
        source: UsageSource = "sampled",
        phase: Phase = "all",
        order: UsageOrder = "fired",
        limit: int = 0,
        window: float | timedelta | None = None,
        tenant_class: str = "",
        baseline: UsageBaseline | None = None,
        make_baseline: bool = False,
        timeout: float | None = None,
    ) -> pb.GetFeatureUsageRequest:
        """Return the features that fire most in what the server writes for everybody.

        source: all features at a sample of the steps, or the watched ones at every token. window: how long
        ago to begin, in seconds; by default with the first count. baseline: rates to compare with, in place
        of those of the period before. make_baseline: return one of this period.
        """
        return usage_request(
            sae=sae,
            source=source,
            phase=phase,
            order=order,
            limit=limit,
            window=window,
            tenant_class=tenant_class,
            baseline=baseline,
            make_baseline=make_baseline,
        )
