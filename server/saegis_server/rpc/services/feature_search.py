"""Search over the labels of several SAEs, and its page tokens."""

import hashlib
from collections.abc import Sequence

from saegis_server.engine.api import FieldError
from saegis_server.sae.catalog import FoundFeature, LoadedSAE
from saegis_server.sae.labels import FeatureLabel, rank


def search(entries: Sequence[LoadedSAE], query: str) -> list[FoundFeature]:
    """The features whose labels contain every word of the query, best match first.

    Labels that equal the query come first, and of equal matches the most precise (see labels.rank). An empty
    query finds every labelled feature, in the order of SAEs and features.
    """
    words = [word for word in query.split() if any(character.isalnum() for character in word)]
    if not words and query.strip():
        return []
    if not words:
        return [FoundFeature(loaded, label.feature, label) for loaded in entries for label in loaded.labels]
    matches: list[tuple[float, FeatureLabel, LoadedSAE]] = []
    for loaded in entries:
        labels = loaded.labels
        with_all = {label.feature for label in labels}
        for word in words:
            with_all &= {label.feature for label, _ in labels.search(word, len(labels))}
        scored = labels.search(query, len(labels))
        matches += [(score, label, loaded) for label, score in scored if label.feature in with_all]
    matches.sort(key=lambda match: rank(query, match[1], match[0]))
    return [FoundFeature(loaded, label.feature, label) for _, label, loaded in matches]


def next_page_token(offset: int, query: str, sae: str) -> str:
    """The token of the page at `offset` of a search; valid only for this search."""
    return f"{offset}-{_fingerprint(query, sae)}"


def offset_of(token: str, query: str, sae: str) -> int:
    """The offset of a page token. Raises FieldError for a token of another search or of no server."""
    if not token:
        return 0
    offset, _, fingerprint = token.partition("-")
    if not (offset.isascii() and offset.isdigit() and len(offset) < 12):
        raise FieldError("page_token", "is no token that this server gave")
    if fingerprint != _fingerprint(query, sae):
        raise FieldError("page_token", "belongs to another query or SAE")
    return int(offset)


def _fingerprint(query: str, sae: str) -> str:
    return hashlib.sha256(f"{sae}\0{query}".encode()).hexdigest()[:16]
