"""Labels on the command line: where one names several features, the best of them is taken, and it is said so.

A policy and a request over the API must name one feature: there a label of several is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from saegis import Edit, FeatureRef, SaegisError, Watch
from saegis.cli.output import notes

if TYPE_CHECKING:
    from saegis import Client


class Labelled(Protocol):
    """A labelled feature as a search tells it."""

    @property
    def sae(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def precision(self) -> float | None: ...


#: Finds features by the words of a label and by an SAE's id, the better ones first.
Find = Callable[[str, str], Sequence[Labelled]]
E = TypeVar("E", Edit, Watch)


def on_server(client: Client) -> Find:
    """Asks a server; where it does not answer, as to who may not search, it is left to judge the label."""

    def find(words: str, sae: str) -> Sequence[Labelled]:
        try:
            return client.search_features(words, sae=sae, page_size=100).features
        except SaegisError:
            return ()

    return find


def settled(asked: Sequence[E], find: Find) -> list[E]:
    """Edits or watches, each label of several features replaced by the best of them, which is told."""
    return [
        replace(each, target=settled_target(each.target, find))
        if isinstance(each.target, FeatureRef)
        else each
        for each in asked
    ]


def settled_target(target: FeatureRef, find: Find) -> FeatureRef:
    """The feature with the best precision of those that a label names, if it names several of one SAE."""
    label = target.selector
    if isinstance(label, int):
        return target
    found = find(label, target.sae)
    alike = [each for each in found if each.label == label]
    alike = alike or [each for each in found if each.label.casefold() == label.casefold()]
    if len(alike) < 2 or len({each.sae for each in alike}) > 1:
        return target
    best, *others = alike
    left = ", ".join(map(_shown, others))
    notes().print(
        f"{len(alike)} features are labelled {label!r}: taking {_shown(best)}, not {left}",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    return FeatureRef(best.index, target.sae)


def _shown(found: Labelled) -> str:
    return str(found.index) + ("" if found.precision is None else f" (precision {found.precision:.2f})")
