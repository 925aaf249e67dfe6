"""Limits: how many pictures a request may have, and how large each may be before it is decoded."""

from dataclasses import dataclass

#: The largest picture that any setting allows: 64 million pixels, of which each takes 3 bytes.
MOST_PIXELS = 2**26
#: The longest side that any setting allows: what a JPEG can state.
LONGEST_SIDE = 65_535


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """count: pictures of a request, 0 for none; size: bytes of each file; pixels, side: of each picture."""

    count: int = 8
    size: int = 4 * 2**20
    pixels: int = 2**24
    side: int = 8192
