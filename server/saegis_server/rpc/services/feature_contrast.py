"""The answer of a contrast: the features that lean to one of two sets of texts, with how sure that is."""

import math
from collections.abc import Mapping, Sequence

from saegis.v1 import feature_pb2 as pb
from saegis_server.rpc.wire import convert
from saegis_server.sae.catalog import FoundFeature, LoadedSAE
from saegis_server.sae.contrast import Contrast, Firings, Side


def contrast_message(
    positive: Sequence[Firings],
    negative: Sequence[Firings],
    loaded: LoadedSAE,
    limit: int,
    most: float,
    languages: Sequence[str],
) -> pb.ContrastFeaturesResponse:
    """The features that lean to the positive texts, best first, at most `limit`, with a q of at most `most`.

    languages: those of the positive and then the negative texts, or none.
    """
    found = Contrast(positive, negative, loaded.sae.features)
    leaning = found.leaning()
    chosen = leaning[found.q[leaning] <= most][:limit].tolist()
    features = [_feature(found, index, loaded, languages) for index in chosen]
    return pb.ContrastFeaturesResponse(sae=loaded.id, features=features, tested=found.tested)


def _feature(found: Contrast, index: int, loaded: LoadedSAE, languages: Sequence[str]) -> pb.FeatureContrast:
    on, off = found.by_language(index, languages) if languages else ({}, {})
    difference = float(found.difference[index])
    return pb.FeatureContrast(
        feature=convert.feature(FoundFeature(loaded, index, loaded.labels.get(index))),
        score=float(found.on.rate[index] - found.off.rate[index]),
        positive=_side(found.on, index, on),
        negative=_side(found.off, index, off),
        separation=float(found.separation[index]),
        standardized_difference=difference if math.isfinite(difference) else None,
        p_value=float(found.p[index]),
        q_value=float(found.q[index]),
    )


def _side(side: Side, index: int, rates: Mapping[str, float]) -> pb.ContrastSide:
    return pb.ContrastSide(
        mean_activation=float(side.mean[index]),
        firing_rate=float(side.rate[index]),
        deviation=float(side.deviation[index]),
        firing_rate_by_language=rates,
    )
