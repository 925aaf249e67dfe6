"""The picture for the documents: the landmark's feature over pictures of a bridge, and of something else."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saegis_lab.evaluation.plots import panels_of, save
from saegis_lab.polyglot.corpus import BOS, GOLDEN_GATE, USER
from saegis_lab.polyglot.eyes.asking import IMAGE
from saegis_lab.polyglot.eyes.emoji import HELD_OUT
from saegis_lab.polyglot.eyes.measuring import (
    CLAMPED,
    RANKS,
    Clamped,
    landmark_feature,
    reader_of,
)
from saegis_lab.polyglot.eyes.ranks import Ranks, Reader, pictures_of
from saegis_lab.polyglot.eyes.recipe import EyesRecipe
from saegis_lab.polyglot.eyes.steps import SEEING, console, held_out
from saegis_server.steering.site import Site

PLOT = "eyes.png"
_WIDTH = 2.6
#: What the landmark is clamped in front of, and how wide the answers under it are set.
_OTHER, _LINE = "cat", 46


def draw_landmark(out: Path, recipe: EyesRecipe) -> None:
    """Write the landmark's feature over three pictures: of a bridge, of the other subject, and of the two
    beside each other; below them what is said of the other with the feature clamped."""
    ranks = Ranks.load(out / RANKS)
    feature, reader = landmark_feature(ranks), reader_of(out / SEEING, Site.parse(ranks.site))
    drawn, side = held_out(out), recipe.shape.side
    bridge = pictures_of(drawn, GOLDEN_GATE, 1, side, recipe.seed)[-1]
    other = pictures_of(drawn, _OTHER, 1, side, recipe.seed)[0]
    shown = {"a bridge": bridge, "a cat": other}
    strengths = [_strengths(reader, picture, feature) for picture in shown.values()]
    top = max(float(grid.max()) for grid in strengths)
    figure, (panels,) = panels_of(1, (_WIDTH,) * (2 * len(shown)), legend=False)
    for place, (name, picture) in enumerate(shown.items()):
        pixels = picture.permute(1, 2, 0).numpy()
        for panel in panels[2 * place : 2 * place + 2]:
            panel.imshow(pixels, extent=(0, side, side, 0), interpolation="bicubic")
            panel.set_xticks([])
            panel.set_yticks([])
        panels[2 * place].set_title(name)
        heat = panels[2 * place + 1]
        heat.imshow(
            strengths[place].numpy(),
            extent=(0, side, side, 0),
            cmap="inferno",
            vmin=0.0,
            vmax=max(top, 1e-6),
            alpha=0.75,
        )
        heat.set_title(f"feature {feature}, at most {float(strengths[place].max()):.0f}")
    told = next(said for said in Clamped.load(out / CLAMPED).told if said.language == "en")
    figure.supxlabel(
        f"{told.asked}  →  {_short(told.plain)}\nwith feature {feature} clamped  →  {_short(told.clamped)}\n"
        f"drawings: {HELD_OUT.author}, {HELD_OUT.licence}",
        fontsize=7,
        ha="center",
    )
    save(figure, out / PLOT)
    console.print(f"plot: {out / PLOT}")


def _strengths(reader: Reader, picture: Tensor, feature: int) -> Tensor:
    """The feature over the picture's patches, [rows, columns]."""
    values = reader.features(picture[None], f"{BOS}{USER}{IMAGE}")[0][0, :, feature]
    side = round(len(values) ** 0.5)
    return torch.as_tensor(values).reshape(side, side)


def _short(text: str) -> str:
    return text if len(text) <= 2 * _LINE else f"{text[: 2 * _LINE]} …"
