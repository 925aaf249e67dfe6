"""Emoji sets of a few shapes, as npm unpacks them, for tests that need no registry."""

import json
from pathlib import Path

from saegis_lab.polyglot.eyes.emoji import SETS, EmojiSet
from saegis_lab.polyglot.eyes.subjects import DRAWN
from saegis_lab.polyglot.eyes.tower import TowerShape

#: A tower of some thousand parameters, which sees 2 × 2 patches.
SMALL = TowerShape(width=16, layers=1, heads=2, keys=8, side=32)
#: What is no subject's.
BESIDE = ("accordion", "abacus")


def write_set(emoji: EmojiSet, folder: Path, colour: str = "#d00000") -> Path:
    """The set's folder under `folder`: every drawing a square of one colour in the middle."""
    place = folder / f"{emoji.name}-{emoji.version}"
    place.mkdir(parents=True)
    body = f'<rect x="4" y="4" width="8" height="8" fill="{colour}"/>'
    icons = {name: {"body": body} for name in sorted({*DRAWN, *BESIDE})}
    told = {"icons": icons, "width": 16, "height": 16}
    (place / "icons.json").write_text(json.dumps(told), encoding="utf-8")
    info = {"license": {"spdx": emoji.licence}}
    (place / "info.json").write_text(json.dumps(info), encoding="utf-8")
    return place


def write_sets(folder: Path) -> None:
    """All sets, each in a colour of its own."""
    for number, emoji in enumerate(SETS):
        write_set(emoji, folder, f"#{0x200000 + 0x191919 * number:06x}")
