"""Search over the labels of several SAEs, and its page tokens."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.api import FieldError
from saegis_server.sae.catalog import FoundFeature, LoadedSAE


class Found:
    """The labels of several SAEs that match a query, best first (LabelIndex.find says the order; of equal
    ones those of the earlier SAE). An empty query finds every label, in the order of SAEs and features."""

    def __init__(self, entries: Sequence[LoadedSAE], query: str) -> None:
        self._entries = entries
        sizes = [len(loaded.labels) for loaded in entries]
        self._begins = np.cumsum([0, *sizes])
        self._best = self._ranked(query) if query.strip() else None

    def _ranked(self, query: str) -> NDArray[np.int64]:
        """The places of the matches among the labels of all SAEs, best first, int64 [k]."""
        matches = [loaded.labels.find(query) for loaded in self._entries]
        if not matches:
            return np.zeros(0, np.int64)
        places = [each.places + begin for each, begin in zip(matches, self._begins, strict=False)]
        standing = np.concatenate([each.standing for each in matches], axis=1)
        order = np.lexsort(standing[::-1]) if len(matches) > 1 else slice(None)
        return np.concatenate(places)[order]

    def __len__(self) -> int:
        return int(self._begins[-1]) if self._best is None else len(self._best)

    def page(self, begin: int, end: int) -> list[FoundFeature]:
        """The matches begin to end, which is not among them."""
        page = range(begin, min(end, len(self)))
        return [self._feature(place if self._best is None else int(self._best[place])) for place in page]

    def _feature(self, place: int) -> FoundFeature:
        owner = int(np.searchsorted(self._begins, place, side="right")) - 1
        loaded = self._entries[owner]
        label = loaded.labels.at(place - int(self._begins[owner]))
        return FoundFeature(loaded, label.feature, label)


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
