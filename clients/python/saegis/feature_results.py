"""What looking at features returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What is recorded about one feature. What nobody recorded is None or empty."""

    sae: str
    index: int
    site: str
    label: str
    max_activation: float | None
    """The largest activation recorded, in feature units."""
    density: float | None
    """The share of tokens on which the feature is active, from 0 to 1."""
    subjects: tuple[str, ...]
    languages: tuple[str, ...]
    precision: float | None
    """The share of its firings that the label explains, from 0 to 1."""
    recall: Mapping[str, float]
    """For each language, the share of what the label means on which the feature fires, from 0 to 1."""
    precision_by_language: Mapping[str, float]
    """For each language, the share of its firings there that the label explains, from 0 to 1."""
    harmful: bool
    """Whether the label marks something harmful."""


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
    """Whether contrasts and statistics leave the token out, since the SAE has hardly learnt it."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer to `inspect`: the tokens of a text with their features, as one SAE reads them."""

    sae: str
    site: str
    tokens: tuple[TokenFeatures, ...]

    def __iter__(self) -> Iterator[TokenFeatures]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """One page of the answer to `search_features`."""

    features: tuple[FeatureInfo, ...]
    next_page_token: str
    """What to give as `page_token` for the next page; empty where there is none."""
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


@dataclass(frozen=True, slots=True)
class FeatureContrast:
    """How one feature differs between two sets of texts."""

    feature: FeatureInfo
    score: float
    """Firing rate in the positive less that in the negative texts, from -1 to 1."""
    positive: ContrastSide
    negative: ContrastSide


@dataclass(frozen=True, slots=True)
class Contrast:
    """The answer to `contrast_features`, highest score first."""

    sae: str
    features: tuple[FeatureContrast, ...]

    def __iter__(self) -> Iterator[FeatureContrast]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)
