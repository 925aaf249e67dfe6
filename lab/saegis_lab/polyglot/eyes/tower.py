"""The eye itself: a small vision tower, taught to tell drawings apart by name whatever their style."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from saegis_lab.polyglot.eyes.emoji import Drawings
from saegis_lab.polyglot.eyes.keeping import Keeper, share
from saegis_lab.polyglot.eyes.scenes import COVERED, Scenery, Scenes, outlined
from saegis_lab.polyglot.eyes.subjects import DRAWN, ICONS

#: The number in place of a name of what is no subject's.
OTHER = -100
#: How often a drawing is as it is, outlined, and outlined in pale colours.
_LOOKS = (0.6, 0.25, 0.15)
#: On how many scenes a tower is settled.
_SETTLED = 512
#: What pictures are centred and scaled by, in each colour, as the processor does.
MEAN, DEVIATION = 0.5, 0.5


@dataclass(frozen=True)
class TowerShape:
    """Size of the tower; `side` and `patch` in pixels."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 384
    side: int = 48
    patch: int = 8

    @property
    def patches(self) -> int:
        """How many patches a picture has, each of which becomes a token."""
        return (self.side // self.patch) ** 2


@dataclass(frozen=True)
class TowerTraining:
    """How the tower is taught. rate: of Muon, for the blocks' matrices; slow_rate: of AdamW, for the rest.
    subjects: the share of a batch that is drawn from the subjects' emoji, the rest from all others."""

    steps: int = 6000
    batch: int = 48
    rate: float = 0.02
    slow_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.02
    subjects: float = 0.75
    checkpoint_every: int = 50


def tower_config(shape: TowerShape) -> CLIPVisionConfig:
    """The tower's configuration as Transformers has it."""
    return CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.side,
        patch_size=shape.patch,
        projection_dim=shape.width,
        attention_dropout=0.0,
    )


def new_tower(shape: TowerShape, seed: int) -> CLIPVisionModel:
    """An untaught tower in float32."""
    torch.manual_seed(seed)
    tower = CLIPVisionModel(tower_config(shape))
    assert isinstance(tower, CLIPVisionModel)  # noqa: S101 - Transformers' decorators hide the type
    for module in tower.modules():
        # What CLIP's own start gives a tower so small is nearly nothing.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return tower


@torch.no_grad()
def settle(tower: CLIPVisionModel, pictures: Tensor) -> None:
    """Start a tower from what pictures [b, 3, side, side] are made of: their patches' strongest directions,
    each as strong as the others, and places as waves along both sides."""
    embeddings = cast(Any, tower).embeddings
    weight = embeddings.patch_embedding.weight
    width, patch = weight.shape[0], weight.shape[-1]
    patches = functional.unfold((pictures - MEAN) / DEVIATION, patch, stride=patch).transpose(1, 2)
    flat = patches.flatten(0, 1).double()
    strengths, directions = torch.linalg.eigh(torch.cov(flat.T))
    kept = min(width, len(strengths))
    # What hardly occurs is noise: it is not made as strong as the rest.
    scales = (strengths[-kept:] + 0.01 * strengths[-1]).rsqrt()
    weight.zero_()
    weight[:kept] = (directions[:, -kept:] * scales).T.to(weight.dtype).view(kept, *weight.shape[1:])
    places = embeddings.position_embedding.weight
    places[1:] = 0.5 * waves(round((len(places) - 1) ** 0.5), width)


def waves(side: int, width: int) -> Tensor:
    """Places in a square of side × side as sines and cosines of their row and column, [side², width]."""
    frequencies = torch.linspace(math.pi / side, math.pi / 2.0, width // 4)
    along = torch.arange(side)[:, None] * frequencies
    one = torch.cat([along.sin(), along.cos()], -1)
    rows, columns = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    told = torch.cat([rows, columns], -1).flatten(0, 1)
    return functional.pad(told, (0, width - told.shape[1]))


def patches_of(tower: nn.Module, pictures: Tensor) -> Tensor:
    """What the tower tells of each patch, [b, patches, width], of pictures [b, 3, side, side] from 0 to 1."""
    told = cast(Any, tower)(pixel_values=(pictures - MEAN) / DEVIATION, output_hidden_states=True)
    return cast(Tensor, told.hidden_states[-1])[:, 1:]


class Heads(nn.Module):
    """What the tower is taught by, and thrown away after: the emoji's name and the subject of whole pictures,
    and the subject of patches."""

    def __init__(self, width: int, names: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.names = nn.Linear(width, names)
        self.whole = nn.Linear(width, len(ICONS) + 1)
        self.patch = nn.Linear(width, len(ICONS) + 1)

    def losses(self, patches: Tensor, cover: Tensor, names: Tensor, subjects: Tensor) -> dict[str, Tensor]:
        """The cross-entropies of names, over the pictures of subjects, of subjects over all pictures, and
        over the patches that are covered."""
        told = self.norm(patches)
        whole, covered = told.mean(1), cover > COVERED
        wanted = subjects[:, None].expand(covered.shape)[covered]
        return {
            "names": functional.cross_entropy(self.names(whole), names, ignore_index=OTHER),
            "subjects": functional.cross_entropy(self.whole(whole), subjects),
            "patches": functional.cross_entropy(self.patch(told[covered]), wanted),
        }


@dataclass(frozen=True)
class Shelf:
    """Drawings to teach from. names, subjects: the number of each one's name and subject, int64 [n]; most are
    of none, and have no name. looks: each drawing as it is, and as if drawn by outlines, its colours kept and
    paled, uint8 [3, n, 4, s, s]."""

    drawings: Drawings
    looks: Tensor
    names: Tensor
    subjects: Tensor

    @classmethod
    def of(cls, drawings: Drawings) -> Shelf:
        """The shelf of some drawings: one name in many styles is one number."""
        names = {name: number for number, name in enumerate(sorted(DRAWN & set(drawings.names)))}
        subject = {name: number for number, icons in enumerate(ICONS.values()) for name in icons}
        pixels = drawings.pixels
        return cls(
            drawings,
            torch.stack([pixels, outlined(pixels, 0.0), outlined(pixels, 0.7)]),
            torch.tensor([names.get(name, OTHER) for name in drawings.names]),
            torch.tensor([subject.get(name, len(ICONS)) for name in drawings.names]),
        )

    def batches(
        self, training: TowerTraining, scenery: Scenery, seed: int, first: int
    ) -> Iterator[tuple[Scenes, Tensor, Tensor]]:
        """Endless (scenes, names, subjects) from step `first` on; each depends on (seed, step) alone."""
        known = torch.tensor(self.drawings.rows(DRAWN))
        step = first
        while True:
            chance = torch.Generator().manual_seed((seed << 32) + step)
            wanted = round(training.subjects * training.batch)
            rows = torch.cat(
                [
                    known[torch.randint(len(known), (wanted,), generator=chance)],
                    torch.randint(len(self.names), (training.batch - wanted,), generator=chance),
                ]
            )
            yield self.scenes(rows, scenery, chance), self.names[rows], self.subjects[rows]
            step += 1

    def rows_of(self, subjects: Tensor, chance: torch.Generator) -> Tensor:
        """A drawing of each of `subjects`, int64 [b], by chance."""
        shares = torch.rand(len(subjects), generator=chance)
        places = {int(number): (self.subjects == number).nonzero()[:, 0] for number in torch.unique(subjects)}
        picked = [places[int(number)] for number in subjects]
        return torch.stack([rows[int(share * len(rows))] for rows, share in zip(picked, shares, strict=True)])

    def drawn(self, count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """(rows, subjects), both int64 [count]: every subject, and what is none, as often as the others."""
        subjects = torch.randint(len(ICONS) + 1, (count,), generator=chance)
        return self.rows_of(subjects, chance), subjects

    def scenes(self, rows: Tensor, scenery: Scenery, chance: torch.Generator) -> Scenes:
        """A scene of each of the drawings in `rows`, int64 [b], in any of its looks."""
        looks = torch.multinomial(torch.tensor(_LOOKS), len(rows), replacement=True, generator=chance)
        return scenery.scenes(self.looks[looks, rows], chance)


class Optimizers:
    """Muon for the matrices of the tower's blocks, AdamW for all else."""

    def __init__(self, tower: nn.Module, heads: nn.Module, training: TowerTraining) -> None:
        blocks = [p for name, p in tower.named_parameters() if p.ndim == 2 and ".layers." in name]
        known = {id(p) for p in blocks}
        self._parameters = [*tower.parameters(), *heads.parameters()]
        rest = [p for p in self._parameters if id(p) not in known]
        self._rates = (training.rate, training.slow_rate)
        self.all: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(blocks, lr=training.rate, weight_decay=training.weight_decay),
            torch.optim.AdamW(
                rest, lr=training.slow_rate, betas=(0.9, 0.98), weight_decay=training.weight_decay
            ),
        )

    def step(self, loss: Tensor, share: float) -> None:
        """One step down `loss`, at `share` of the peak rates."""
        for optimizer, peak in zip(self.all, self._rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self.all:
            optimizer.step()


def teach_tower(
    shape: TowerShape, training: TowerTraining, shelf: Shelf, scenery: Scenery, seed: int, folder: Path
) -> CLIPVisionModel:
    """A tower that was taught to name what is on the shelf, on the CPU, in float32.

    An interrupted run goes on from the checkpoint in `folder`. Raises ValueError if that belongs to a run
    with other settings.
    """
    tower, heads = new_tower(shape, seed), Heads(shape.width, int(shelf.names.max()) + 1)
    settled = torch.Generator().manual_seed(seed)
    settle(tower, shelf.scenes(shelf.drawn(_SETTLED, settled)[0], scenery, settled).pictures)
    optimizer = Optimizers(tower, heads, training)
    settings = {
        **asdict(shape),
        **asdict(training),
        **asdict(scenery),
        "seed": seed,
        "drawn": len(shelf.names),
    }
    keeper = Keeper("tower", folder, settings, {"tower": tower, "heads": heads}, optimizer.all)
    first = keeper.resume()
    stream = shelf.batches(training, scenery, seed, first)
    with keeper.progress(first, training.steps) as told:
        for step in range(first, training.steps):
            scenes, names, subjects = next(stream)
            losses = heads.losses(patches_of(tower, scenes.pictures), scenes.cover, names, subjects)
            optimizer.step(
                sum(losses.values(), torch.zeros(())), share(step, training.steps, training.warmup)
            )
            told(**{name: loss.item() for name, loss in losses.items()})
            if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
                keeper.keep(step + 1)
    return tower
