"""Pictures in prompts: what a model that sees is shown of each, and at which of the prompt's tokens.

A picture is so many tokens of a prompt. At some of them, the places, stands what the model's vision tower
makes of it; the others, such as marks around tiles, are tokens like any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor


class Grid(NamedTuple):
    """A grid of a picture's tokens, row by row without gaps, and the part of the picture that it covers.

    first: the place of its first token within the picture's. left, top, right, bottom: in fractions of the
    picture's width and height.
    """

    first: int
    rows: int
    columns: int
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture as a model is shown it.

    tokens: what stands for it in a prompt. places: which of them the tower's vectors take, counted from the
    first one. inputs: what the tower is given, on the CPU. grids: how its places lie on the picture.
    """

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    grids: tuple[Grid, ...] = ()


class Placed(NamedTuple):
    """A picture in a prompt, whose tokens are those from the place `start` on."""

    start: int
    shown: Shown

    @property
    def end(self) -> int:
        """The place after its last token."""
        return self.start + len(self.shown.tokens)


class Eyes(Protocol):
    """What makes of pictures what a model is shown. Safe to use from several threads."""

    @property
    def placeholder(self) -> str:
        """The text of the token that stands for a picture in a chat template."""

    @property
    def placeholder_id(self) -> int:
        """The id of that token, which also stands at every place of a picture."""

    def show(self, image: Image.Image) -> Shown:
        """What the model is shown of a picture in RGB. Raises ValueError for one that cannot be shown."""


def misplaced(tokens: Sequence[int], pictures: Sequence[Placed], placeholder: int | None) -> str:
    """What is wrong with the pictures of a prompt, in words; empty if nothing is.

    Each must stand where its tokens are, in order and apart, and no other token may be the placeholder, which
    is None for a model that sees nothing.
    """
    if placeholder is None:
        return "the model sees no pictures" if pictures else ""
    for before, after in pairwise(pictures):
        if after.start < before.end:
            return f"two pictures share token {after.start}"
    for each in pictures:
        if each.start < 0 or tuple(tokens[each.start : each.end]) != each.shown.tokens:
            return f"the tokens from {each.start} on are not those of the picture"
    within = {place for each in pictures for place in range(each.start, each.end)}
    for place, token in enumerate(tokens):
        if token == placeholder and place not in within:
            return f"token {place} stands for a picture, and there is none"
    return ""
