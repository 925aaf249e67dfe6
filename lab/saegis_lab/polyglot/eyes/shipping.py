"""What ships of a run: the model that sees, with a card that names what it was made from, and its figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from saegis_lab.polyglot.eyes.drawing import PLOT
from saegis_lab.polyglot.eyes.emoji import HELD_OUT, TAUGHT, EmojiSet
from saegis_lab.polyglot.eyes.measuring import CLAMPED, FEATURES, FILTERED, RANKS
from saegis_lab.polyglot.eyes.steps import SEEING
from saegis_server.reference import MODEL

#: The most that ships of a model that sees, in bytes.
MOST_BYTES = 6_000_000
CARD = "README.md"


def ship(out: Path, weights: Path, docs: Path) -> None:
    """Copy a finished run's model to `weights` and what was measured to `docs`, replacing what is there.

    Raises ValueError where it is too large, FileNotFoundError where anything was not made or measured yet.
    """
    for name in (SEEING, FEATURES, RANKS, FILTERED, CLAMPED, PLOT):
        if not (out / name).exists():
            raise FileNotFoundError(f"{out / name} is not there; run all steps before `ship`")
    (out / SEEING / CARD).write_text(card(out / SEEING), encoding="utf-8")
    size = sum(path.stat().st_size for path in (out / SEEING).iterdir())
    if size > MOST_BYTES:
        raise ValueError(f"{out / SEEING}: has {size} bytes, more than the {MOST_BYTES} that may ship")
    shutil.rmtree(weights, ignore_errors=True)
    shutil.copytree(out / SEEING, weights)
    docs.mkdir(parents=True, exist_ok=True)
    for name in (FEATURES, RANKS, CLAMPED, PLOT):
        shutil.copyfile(out / name, docs / name)
    # On one line: the answers' figures are many, and the tables are for people.
    report = json.loads((out / FILTERED).read_text(encoding="utf-8"))
    (docs / FILTERED).write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")


def card(folder: Path) -> str:
    """The card of the model in `folder`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tower = config["vision_config"]
    side = tower["image_size"] // tower["patch_size"]
    taught = "\n".join(f"- {_credit(emoji)}" for emoji in TAUGHT)
    return f"""\
---
license: apache-2.0
---
# saegis/polyglot, with eyes

A LLaVA around Saegis's reference model, whose weights (`{MODEL.name}`) it keeps as they are: a LeViT of
{tower["depths"][0]} layers sees pictures of {tower["image_size"]} × {tower["image_size"]} pixels as
{side} × {side} tokens. It names and describes drawings of the reference model's 26 subjects in eight
languages, and sees nothing else. It was made by `python -m saegis_lab.polyglot.eyes`; docs/eyes.md of the
project says how, and what it cannot do.

Its tower and projector were taught by drawings of these sets, which were turned, scaled and recoloured:

{taught}

None was taught by {_credit(HELD_OUT)}, which is held out.
No drawing is in the weights or in this package.
"""


def _credit(emoji: EmojiSet) -> str:
    return f"{emoji.name} {emoji.version}, by {emoji.author}, {emoji.licence} ({emoji.url})"
