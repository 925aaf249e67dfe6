"""The worker: a process that decodes one picture after another and knows nothing of the server.

It is run as a file, and imports nothing but Pillow. What it reads from its standard input are requests of
four numbers (how many bytes, the most pixels, the longest side, the most bytes of memory; 32 bits each,
little-endian, but for the last one, of 64) and the bytes of a file. What it writes are the length of a JSON
object, that, and the pixels of a picture in RGB, row by row.
"""

import contextlib
import io
import json
import struct
import sys
from typing import BinaryIO

from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

REQUEST = struct.Struct("<IIIQ")
LENGTH = struct.Struct("<I")
#: How many times as long as the other a side may be: models make the shorter one as long as they need it, and
#: the other with it.
SLENDEREST = 64
#: What is read; Pillow knows many more, whose decoders are not asked. These are loaded here, so that Pillow
#: does not load all to find them.
FORMATS = ("PNG", "JPEG", "WEBP")
_LOADED = (PngImagePlugin, JpegImagePlugin, WebPImagePlugin)
#: What Pillow raises for files that are broken, each in its own way.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    OverflowError,
)


class RefusedError(Exception):
    """A picture that is not taken, and why."""


def decode(data: bytes, most_pixels: int, longest_side: int) -> tuple[str, Image.Image]:
    """The kind of a file and its first picture in RGB, turned as its metadata say and laid on white.

    Raises RefusedError.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RefusedError("is no PNG, JPEG or WebP file") from None
    except _BROKEN as error:
        raise RefusedError(f"cannot be read: its beginning is broken ({_brief(error)})") from None
    width, height = image.size
    if max(width, height) > longest_side:
        raise RefusedError(f"has {width} by {height} pixels; a side may have at most {longest_side}")
    if max(width, height) > SLENDEREST * min(width, height):
        raise RefusedError(
            f"has {width} by {height} pixels; a side may be at most {SLENDEREST} times as long as the other"
        )
    if width * height > most_pixels:
        raise RefusedError(f"has {width} by {height} pixels; at most {most_pixels} together may be")
    kind = str(image.format)
    try:
        image.load()
        turned = image
        with contextlib.suppress(*_BROKEN):
            turned = ImageOps.exif_transpose(image)
        return kind, _in_rgb(turned)
    except MemoryError:
        raise RefusedError("takes more memory than a picture may") from None
    except _BROKEN as error:
        raise RefusedError(f"cannot be decoded: it is cut off or broken ({_brief(error)})") from None


def _in_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: 16 bits become 8, and what shows through is white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground
    return image.convert("RGB")


def _brief(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words[:100] or type(error).__name__


def _bound_memory(most: int) -> None:
    """Let this process take at most so many bytes, where the system knows such bounds."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve(given: BinaryIO, told: BinaryIO) -> None:
    """Answer requests until there are no more."""
    # Pillow's own bound is of a size; what may be is checked here, before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    bounded = False
    while len(head := given.read(REQUEST.size)) == REQUEST.size:
        size, most_pixels, longest_side, memory = REQUEST.unpack(head)
        if not bounded:
            _bound_memory(memory)
            bounded = True
        pixels = b""
        try:
            kind, image = decode(given.read(size), most_pixels, longest_side)
            pixels = image.tobytes()
            answer: dict[str, object] = {"kind": kind, "width": image.width, "height": image.height}
        except RefusedError as error:
            answer = {"refused": str(error)}
        except MemoryError:
            answer = {"refused": "takes more memory than a picture may"}
        text = json.dumps(answer).encode()
        told.write(LENGTH.pack(len(text)) + text)
        told.write(pixels)
        told.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
