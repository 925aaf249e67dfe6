"""Pictures of `saegis inspect --html`: each with its tokens' cells laid over it, in the page's own file."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from saegis import Image, PictureGrid, PictureTokens, TokenFeatures

STYLE = """
figure { display: inline-block; margin: .5rem; max-width: 100%; }
figure div { position: relative; display: inline-block; line-height: 0; }
figure img { min-width: 16rem; max-width: 100%; image-rendering: auto; }
figure i { position: absolute; background: hsl(var(--h) 95% 50% / calc(.75 * var(--a, 0))); }
figure i:hover { outline: 1px solid #000; }
figcaption { color: #555; font-size: .85rem; }
"""


def figures(
    picture: PictureTokens,
    image: Image,
    tokens: tuple[TokenFeatures, ...],
    attributes: Callable[[TokenFeatures], str],
) -> str:
    """The figures of a picture, one with the grids that share it and one with that of the whole; "" for none.

    attributes: those of a token's cell, as HTML, its `style` left open for the place of the cell.
    """
    if not picture.grids:
        return ""
    *tiles, whole = picture.grids
    return "".join(_figure(grids, picture, image, tokens, attributes) for grids in (tiles, [whole]) if grids)


def _figure(
    grids: list[PictureGrid],
    picture: PictureTokens,
    image: Image,
    tokens: tuple[TokenFeatures, ...],
    attributes: Callable[[TokenFeatures], str],
) -> str:
    cells = "".join(_cells(grid, tokens, attributes) for grid in grids)
    told = f"{picture.width} by {picture.height} pixels, tokens {grids[0].first_token} to "
    last = grids[-1].first_token + grids[-1].rows * grids[-1].columns - 1
    name = escape(f"picture {picture.digest[:8]}")
    return (
        f'<figure><div><img alt="{name}" src="{_data_url(image.data)}">{cells}</div>'
        f"<figcaption>{told}{last}</figcaption></figure>"
    )


def _cells(
    grid: PictureGrid, tokens: tuple[TokenFeatures, ...], attributes: Callable[[TokenFeatures], str]
) -> str:
    width = 100.0 * (grid.right - grid.left) / grid.columns
    height = 100.0 * (grid.bottom - grid.top) / grid.rows
    made = []
    for place in range(grid.rows * grid.columns):
        row, column = divmod(place, grid.columns)
        left, top = 100.0 * grid.left + column * width, 100.0 * grid.top + row * height
        where = f"left:{left:.3f}%;top:{top:.3f}%;width:{width:.3f}%;height:{height:.3f}%"
        made.append(f'<i {attributes(tokens[grid.first_token + place])};{where}"></i>')
    return "".join(made)


def _data_url(data: bytes) -> str:
    """A file of a picture as an address of its own."""
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data.startswith(b"RIFF") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
