"""Files of pictures as nobody should send them, and odd ones that are pictures all the same."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image, PngImagePlugin

from tests.engine.seeing import picture


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file that says it is so large, whatever its data are."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _bomb() -> bytes:
    """Millions of pixels of nothing in some kilobytes."""
    return png_of(8000, 600, zlib.compress(bytes(600 * (1 + 3 * 8000)), 9))


def _jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(file_of(picture(1, 64, 64), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _texts(size: int) -> bytes:
    """A small picture with much beside it, which is mostly packed away."""
    info = PngImagePlugin.PngInfo()
    for number in range(4):
        info.add_text(f"note {number}", "x" * size, zip=True)
    return file_of(picture(2), pnginfo=info)


def _frames(kind: str) -> bytes:
    first, *others = (picture(seed, 20, 20) for seed in range(3))
    return file_of(first, kind, save_all=True, append_images=others, duration=50)


#: Files that are refused, with what is said of them.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is empty"),
    "text": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no PNG, JPEG or WebP file"),
    "gif": (lambda: file_of(picture(0), "GIF"), "is no PNG, JPEG or WebP file"),
    "tiff": (lambda: file_of(picture(0), "TIFF"), "is no PNG, JPEG or WebP file"),
    "bmp": (lambda: file_of(picture(0), "BMP"), "is no PNG, JPEG or WebP file"),
    "head alone": (lambda: b"\x89PNG\r\n\x1a\n", "cannot be read|is no PNG"),
    "cut png": (lambda: file_of(picture(0, 200, 200))[:20_000], "cut off or broken"),
    "cut jpeg": (lambda: file_of(picture(0, 200, 200), "JPEG")[:5000], "cut off or broken"),
    "cut webp": (
        lambda: file_of(picture(0, 200, 200), "WEBP")[:3000],
        "cut off or broken|cannot be read|is no",
    ),
    "broken data": (lambda: png_of(50, 50, b"no zlib at all"), "cut off or broken"),
    "too few rows": (lambda: png_of(50, 50, zlib.compress(bytes(100))), "cut off or broken"),
    "bomb": (_bomb, "8000 by 600 pixels; at most"),
    "longest sides": (lambda: _jpeg_that_says(65_500, 65_500), "65500 by 65500 pixels; a side"),
    "a long side": (
        lambda: png_of(65_535, 1, zlib.compress(bytes(1 + 3 * 65_535))),
        "65535 by 1 pixels; a side",
    ),
    "a thread": (lambda: file_of(picture(0, 2, 200)), "2 by 200 pixels; a side may be at most 64 times"),
    "no side": (lambda: png_of(0, 10, zlib.compress(b"")), "."),
    "endless side": (lambda: png_of(2**31 - 1, 2**31 - 1, b""), "a side may have"),
    "unpacked texts": (lambda: _texts(2 * 2**20), "cannot be read|cut off or broken|memory"),
}
#: Odd files that are answered, with the size of what is seen.
ANSWERED: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "png": (lambda: file_of(picture(0)), (24, 20)),
    "jpeg": (lambda: file_of(picture(0), "JPEG"), (24, 20)),
    "webp": (lambda: file_of(picture(0), "WEBP"), (24, 20)),
    "one pixel": (lambda: file_of(picture(0, 1, 1)), (1, 1)),
    "16 bits": (lambda: file_of(Image.new("I;16", (9, 7), 40_000)), (9, 7)),
    "16 bits of colour": (lambda: png_of(4, 4, zlib.compress(bytes(4 * (1 + 24))), depth=16), (4, 4)),
    "CMYK": (lambda: file_of(picture(0).convert("CMYK"), "JPEG"), (24, 20)),
    "grey": (lambda: file_of(picture(0).convert("L")), (24, 20)),
    "black and white": (lambda: file_of(picture(0).convert("1")), (24, 20)),
    "palette": (lambda: file_of(picture(0).convert("P")), (24, 20)),
    "animated png": (lambda: _frames("PNG"), (20, 20)),
    "animated webp": (lambda: _frames("WEBP"), (20, 20)),
    "transparent": (lambda: file_of(Image.new("RGBA", (6, 5), (0, 0, 0, 0))), (6, 5)),
    "much metadata": (lambda: _texts(200_000), (24, 20)),
    "turned": (lambda: file_of(picture(0), "JPEG", exif=_turned()), (20, 24)),
}


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()
