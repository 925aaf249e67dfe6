"""Pictures in messages: read from a file or given as its bytes, and sent as they are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: the bytes of a PNG, JPEG or WebP file. The server decodes it, within its limits."""

    data: bytes = field(repr=False)


def image(source: str | os.PathLike[str] | bytes) -> Image:
    """A picture for a message's content, from the path of a file or from the bytes of one: the content may be
    `[saegis.image("bridge.png"), "What is this?"]`.

    Raises OSError for a file that cannot be read, TypeError for what is neither, ValueError for no bytes.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        data = Path(source).read_bytes()
    else:
        raise TypeError(f"a picture is the path of a file or its bytes, not {type(source).__name__}")
    if not data:
        raise ValueError("the picture is empty")
    return Image(data)
