"""The emoji sets whose drawings the eyes are taught by and measured on: where they come from, under which
licence, fetched once by npm and drawn by resvg."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class EmojiError(RuntimeError):
    """An emoji set cannot be fetched or is not what it should be; the message names the set."""


_NOTO = "https://github.com/googlefonts/noto-emoji"
_FLUENT = "https://github.com/microsoft/fluentui-emoji"
_EMOJI_ONE = "https://github.com/EmojiTwo/emojitwo"


@dataclass(frozen=True)
class EmojiSet:
    """One set: its name, the npm package and version that hold it, who drew it, and its licence by SPDX."""

    name: str
    version: str
    author: str
    licence: str
    url: str

    @property
    def package(self) -> str:
        """The npm package, without its version."""
        return f"@iconify-json/{self.name}"


#: Sets that teach, in nine styles. Each package states its licence, and `read` holds it to what stands here.
TAUGHT = (
    EmojiSet("twemoji", "1.2.5", "Twitter", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    EmojiSet("noto", "1.2.9", "Google Inc", "Apache-2.0", _NOTO),
    EmojiSet("fluent-emoji-flat", "1.2.6", "Microsoft Corporation", "MIT", _FLUENT),
    EmojiSet("noto-v1", "1.2.5", "Google Inc", "Apache-2.0", _NOTO),
    EmojiSet("emojione", "1.2.3", "Emoji One", "CC-BY-4.0", _EMOJI_ONE),
    EmojiSet("fxemoji", "1.2.2", "Mozilla", "Apache-2.0", "https://github.com/mozilla/fxemoji"),
    EmojiSet(
        "streamline-emojis",
        "1.2.4",
        "Streamline",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
    EmojiSet("fluent-emoji-high-contrast", "1.2.6", "Microsoft Corporation", "MIT", _FLUENT),
    EmojiSet("emojione-monotone", "1.2.1", "Emoji One", "CC-BY-4.0", _EMOJI_ONE),
)
#: The set that is held out: a style, drawn by outlines, that no weight has seen. Its licence asks that what
#: is made from it is shared alike; nothing that ships is made from it.
HELD_OUT = EmojiSet(
    "openmoji", "1.2.29", "OpenMoji", "CC-BY-SA-4.0", "https://github.com/hfg-gmuend/openmoji"
)
SETS = (*TAUGHT, HELD_OUT)
#: Drawings that show something else than those of the same name in other sets: houses in the fog, no bridge.
UNLIKE = frozenset(
    (emoji, "foggy")
    for emoji in (
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "noto-v1",
        "emojione",
        "emojione-monotone",
        "fxemoji",
    )
)


@dataclass(frozen=True)
class Icons:
    """The drawings of a set by name, each an SVG document."""

    of: EmojiSet
    svgs: dict[str, str]

    def drawn(self, name: str) -> str | None:
        """The drawing of a name, which some sets write without hyphens and others number; None for none."""
        spelled = (name, f"{name}-1", name.replace("-", ""))
        return next((self.svgs[each] for each in spelled if each in self.svgs), None)


def fetch(emoji: EmojiSet, folder: Path) -> Path:
    """The folder of a set's files under `folder`, fetched by `npm pack` unless it is there.

    Raises EmojiError where npm is missing or fails, or the package holds no drawings.
    """
    place = folder / f"{emoji.name}-{emoji.version}"
    if (place / "icons.json").exists():
        return place
    npm = shutil.which("npm")
    if npm is None:
        raise EmojiError(f"{emoji.package}: npm is not installed, and the set is not in {place}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{emoji.package}@{emoji.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"npm ended with {done.returncode}"]
        raise EmojiError(f"{emoji.package}@{emoji.version}: {told[-1]}")
    packed = folder / done.stdout.strip().splitlines()[-1]
    fresh = folder / f"{emoji.name}.tmp"
    fresh.mkdir(exist_ok=True)
    with tarfile.open(packed) as archive:
        for name in ("icons.json", "info.json"):
            try:
                member = archive.extractfile(f"package/{name}")
            except KeyError:
                member = None
            if member is None:
                raise EmojiError(f"{emoji.package}@{emoji.version}: the package has no {name}")
            (fresh / name).write_bytes(member.read())
    packed.unlink()
    fresh.replace(place)
    return place


def read(emoji: EmojiSet, place: Path) -> Icons:
    """The drawings of a set from its folder. Raises EmojiError where the licence is not the one stated here,
    or a file is not what such a set has."""
    try:
        info = json.loads((place / "info.json").read_text(encoding="utf-8"))
        icons = json.loads((place / "icons.json").read_text(encoding="utf-8"))
        licence, drawn = info["license"]["spdx"], icons["icons"]
        svgs = {name: _document(icon, icons) for name, icon in drawn.items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise EmojiError(f"{emoji.package}: {place} holds no emoji set ({error})") from error
    if licence != emoji.licence:
        raise EmojiError(f"{emoji.package}: its licence is {licence}, not {emoji.licence} as stated here")
    for alias, entry in icons.get("aliases", {}).items():
        # Turned and mirrored ones are drawings of their own, which nothing here needs.
        if set(entry) == {"parent"} and entry["parent"] in svgs:
            svgs[alias] = svgs[entry["parent"]]
    return Icons(emoji, svgs)


def _document(icon: dict[str, object], icons: dict[str, object]) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def draw(svg: str, size: int) -> Tensor:
    """A drawing as uint8 [4, size, size], red, green, blue and cover; the longer side fills the frame.

    Raises EmojiError for what is no SVG.
    """
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        with Image.open(io.BytesIO(bytes(png))) as picture:
            pixels = np.array(picture.convert("RGBA").resize((size, size)))
    except (ValueError, OSError) as error:
        raise EmojiError(f"a drawing cannot be drawn: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Drawings:
    """Drawings of one size: pixels uint8 [n, 4, size, size], and the set and name of each."""

    pixels: Tensor
    sets: tuple[str, ...]
    names: tuple[str, ...]

    def only(self, sets: Collection[str]) -> Drawings:
        """Those of some sets."""
        kept = [row for row, name in enumerate(self.sets) if name in sets]
        return Drawings(
            self.pixels[kept], tuple(self.sets[row] for row in kept), tuple(self.names[row] for row in kept)
        )

    def rows(self, names: Collection[str]) -> list[int]:
        """Where the drawings with these names stand."""
        return [row for row, name in enumerate(self.names) if name in names]


def drawings(icons: Iterable[Icons], names: Collection[str], size: int) -> Drawings:
    """Those of `names` that each set has, drawn. Raises EmojiError where none of the sets has any."""
    wanted = [(each, name) for each in icons for name in sorted(names)]
    found = [
        (each.of.name, name, svg)
        for each, name in wanted
        if (each.of.name, name) not in UNLIKE and (svg := each.drawn(name)) is not None
    ]
    if not found:
        raise EmojiError(f"none of the sets has any of {', '.join(sorted(names)[:5])}")
    pixels = torch.stack([draw(svg, size) for _, _, svg in found])
    return Drawings(pixels, tuple(of for of, _, _ in found), tuple(name for _, name, _ in found))
