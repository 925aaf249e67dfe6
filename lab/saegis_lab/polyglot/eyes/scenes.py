"""Scenes: drawings turned, scaled and recoloured, on changing backgrounds, by a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: How much of a patch a drawing has to cover for the patch to be of its subject.
COVERED = 0.3
#: What weighs red, green and blue to brightness.
_BRIGHTNESS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Scenes:
    """Pictures float32 [b, 3, side, side] from 0 to 1, and the share of each patch that the drawing covers,
    float32 [b, patches], patches in reading order."""

    pictures: Tensor
    cover: Tensor


@dataclass(frozen=True)
class Scenery:
    """How scenes vary. side, patch: of a picture, in pixels. turn: degrees either way. least, most: the
    drawing's size by that of the frame. Shares of scenes: recoloured, plain (on one colour)."""

    side: int = 64
    patch: int = 16
    turn: float = 20.0
    least: float = 0.6
    most: float = 1.05
    recoloured: float = 0.6
    plain: float = 0.5

    def scenes(self, drawings: Tensor, chance: torch.Generator) -> Scenes:
        """A scene of each drawing, uint8 [b, 4, s, s]; what varies is drawn from `chance`."""
        drawn = drawings.float() / 255.0
        placed = self._placed(torch.cat([drawn[:, :3] * drawn[:, 3:], drawn[:, 3:]], 1), chance)
        colour, cover = placed[:, :3], placed[:, 3:]
        pictures = self._recoloured(colour, cover, chance)
        pictures = pictures + self._ground(len(drawings), chance) * (1.0 - cover)
        noise = 0.03 * _uniform((len(drawings), 1, 1, 1), chance)
        pictures = pictures + noise * torch.randn(pictures.shape, generator=chance)
        return Scenes(pictures.clamp(0.0, 1.0), functional.avg_pool2d(cover, self.patch).flatten(1))

    def _recoloured(self, colour: Tensor, cover: Tensor, chance: torch.Generator) -> Tensor:
        """Hue, saturation, contrast and brightness changed, of a share of the drawings; colours are already
        weighed by their cover."""
        n = len(colour)
        angle = torch.randn(n, generator=chance) * 0.5
        angle = torch.where(_uniform((n,), chance) < 0.2, _uniform((n,), chance) * 2 * math.pi, angle)
        changed = (_uniform((n,), chance) < self.recoloured).float()
        brightness = torch.tensor(_BRIGHTNESS)
        saturation = 1.0 + changed * (1.3 * _uniform((n,), chance) - 0.8)
        contrast = 1.0 + changed * (0.8 * _uniform((n,), chance) - 0.4)
        shift = changed * 0.15 * torch.randn(n, generator=chance) + 0.5 * (1.0 - contrast)
        grey = brightness.expand(3, 3)
        weights = contrast[:, None, None] * (grey + saturation[:, None, None] * (torch.eye(3) - grey))
        weights = weights @ _hue(angle * changed)
        mixed = (weights @ colour.flatten(2)).view_as(colour) + shift[:, None, None, None] * cover
        return torch.minimum(mixed.clamp_min(0.0), cover)

    def _placed(self, premultiplied: Tensor, chance: torch.Generator) -> Tensor:
        """Turned, scaled, mirrored and moved into the frame: [b, 4, side, side]."""
        n = len(premultiplied)
        angle = (2.0 * _uniform((n,), chance) - 1.0) * math.radians(self.turn)
        size = self.least + (self.most - self.least) * _uniform((n,), chance)
        stretch = torch.exp(0.12 * torch.randn(n, generator=chance))
        mirror = torch.where(_uniform((n,), chance) < 0.5, -1.0, 1.0)
        room = (1.05 - size).clamp_min(0.05)
        move = (2.0 * _uniform((n, 2), chance) - 1.0) * room[:, None]
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        linear = torch.stack([cos * mirror * stretch, -sin * mirror, sin * stretch, cos], -1).view(n, 2, 2)
        theta = torch.cat([linear, -(linear @ move[:, :, None])], -1)
        grid = functional.affine_grid(theta, [n, 4, self.side, self.side], align_corners=False)
        return functional.grid_sample(premultiplied, grid, align_corners=False)

    def _ground(self, n: int, chance: torch.Generator) -> Tensor:
        """Backgrounds [n, 3, side, side]: one colour, white among them, or two in blots or a slope."""
        first = _uniform((n, 3, 1, 1), chance)
        first = torch.where(_uniform((n, 1, 1, 1), chance) < 0.35, 1.0 - 0.1 * first, first)
        second = (first + 0.5 * torch.randn(n, 3, 1, 1, generator=chance)).clamp(0.0, 1.0)
        coarse = torch.rand(n, 1, 4, 4, generator=chance)
        blots = functional.interpolate(coarse, size=self.side, mode="bicubic", align_corners=False)
        mixed = blots.clamp(0.0, 1.0) * (_uniform((n, 1, 1, 1), chance) >= self.plain)
        return first + (second - first) * mixed


def outlined(drawings: Tensor, pale: float) -> Tensor:
    """Drawings, uint8 [n, 4, s, s], as if drawn by outlines: a dark line around each and along the edges of
    its colours, which are paled by the share `pale`."""
    drawn = drawings.float() / 255.0
    colour, cover = drawn[:, :3], drawn[:, 3:]
    grown = functional.max_pool2d(cover, 3, 1, 1)
    grey = torch.einsum("i,bihw->bhw", torch.tensor(_BRIGHTNESS), colour * cover + 1.0 - cover)[:, None]
    edges = functional.max_pool2d(grey, 3, 1, 1) + functional.max_pool2d(-grey, 3, 1, 1)
    line = torch.maximum((edges * 3.0 - 0.3).clamp(0.0, 1.0) * grown, (grown - cover).clamp_min(0.0))
    colour = (colour + pale * (1.0 - colour)) * (1.0 - line) + 0.1 * line
    return (torch.cat([colour, torch.maximum(cover, line)], 1) * 255.0).round().to(torch.uint8)


def _uniform(shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=chance)


def _hue(angle: Tensor) -> Tensor:
    """The turn of colours about grey by `angle` radians, [b, 3, 3]."""
    third = torch.full((3, 3), 1.0 / 3.0)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cos * torch.eye(3) + (1.0 - cos) * third + sin * cross


#: Scenes as those that are measured: the drawing a little turned, moved and scaled, its colours its own.
STILL = Scenery(turn=12.0, least=0.7, most=1.0, recoloured=0.0)
