"""The eye itself: a small vision tower, taught to tell drawings apart by name whatever their style."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LevitConfig, LevitModel

from saegis_lab.polyglot.eyes.emoji import Drawings
from saegis_lab.polyglot.eyes.keeping import Keeper, share
from saegis_lab.polyglot.eyes.scenes import COVERED, Scenery, Scenes, outlined
from saegis_lab.polyglot.eyes.subjects import DRAWN, ICONS

#: The number in place of a name of what is no subject's.
OTHER = -100
#: How often a drawing is as it is, outlined, and outlined in pale colours.
_LOOKS = (0.45, 0.3, 0.25)
#: What pictures are centred and scaled by, in each colour, as the processor does.
MEAN, DEVIATION = 0.5, 0.5


#: Each of the four convolutions that LeViT begins with halves a picture's sides.
_HALVED = 16


@dataclass(frozen=True)
class TowerShape:
    """Size of the tower. side: of a picture, in pixels. keys: numbers of a head's keys; its values have
    twice as many."""

    width: int = 128
    layers: int = 3
    heads: int = 8
    keys: int = 16
    side: int = 64

    @property
    def patch(self) -> int:
        """A patch's side, in pixels."""
        return _HALVED

    @property
    def patches(self) -> int:
        """How many patches a picture has, each of which becomes a token."""
        return (self.side // self.patch) ** 2


@dataclass(frozen=True)
class TowerTraining:
    """How the tower is taught. rate: of Muon, for the blocks' matrices; slow_rate: of AdamW, for the rest.
    subjects: the share of a batch that is of subjects, each as often as the others; the rest is of all
    drawings."""

    steps: int = 4500
    batch: int = 64
    rate: float = 0.02
    slow_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.02
    subjects: float = 0.8
    checkpoint_every: int = 50


def tower_config(shape: TowerShape) -> LevitConfig:
    """The tower's configuration as Transformers has it: LeViT of one stage, convolutions and then layers that
    look at all patches."""
    configure: Any = LevitConfig
    config: LevitConfig = configure(
        image_size=shape.side,
        patch_size=shape.patch,
        hidden_sizes=[shape.width, shape.width],
        num_attention_heads=[shape.heads],
        depths=[shape.layers],
        key_dim=[shape.keys],
        mlp_ratio=[2],
        attention_ratio=[2],
        # Nothing is left out between stages where there is one; what a LLaVA asks for of a tower's width.
        down_ops=[[""]],
        hidden_size=shape.width,
    )
    return config


def new_tower(shape: TowerShape, seed: int) -> LevitModel:
    """An untaught tower in float32."""
    torch.manual_seed(seed)
    make: Any = LevitModel
    tower: LevitModel = make(tower_config(shape))
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return tower


def patches_of(tower: nn.Module, pictures: Tensor) -> Tensor:
    """What the tower tells of each patch, [b, patches, width], of pictures [b, 3, side, side] from 0 to 1."""
    told = cast(Any, tower)(pixel_values=(pictures - MEAN) / DEVIATION, output_hidden_states=True)
    return cast(Tensor, told.hidden_states[-1])


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
        step = first
        while True:
            chance = torch.Generator().manual_seed((seed << 32) + step)
            wanted = round(training.subjects * training.batch)
            rows = torch.cat(
                [
                    self.rows_of(torch.randint(len(ICONS), (wanted,), generator=chance), chance),
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
        blocks = [p for name, p in tower.named_parameters() if name.endswith("linear.weight")]
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
) -> LevitModel:
    """A tower that was taught to name what is on the shelf, on the CPU, in float32.

    An interrupted run goes on from the checkpoint in `folder`. Raises ValueError if that belongs to a run
    with other settings.
    """
    tower, heads = new_tower(shape, seed), Heads(shape.width, int(shelf.names.max()) + 1)
    cast(Any, tower.train()).to(memory_format=torch.channels_last)
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
            pictures = scenes.pictures.contiguous(memory_format=torch.channels_last)
            # Twice as fast on a CPU as float32; the weights themselves stay in float32.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                patches = patches_of(tower, pictures)
            losses = heads.losses(patches.float(), scenes.cover, names, subjects)
            optimizer.step(
                sum(losses.values(), torch.zeros(())), share(step, training.steps, training.warmup)
            )
            told(**{name: loss.item() for name, loss in losses.items()})
            if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
                keeper.keep(step + 1)
    return cast(LevitModel, cast(Any, tower).eval().to(memory_format=torch.contiguous_format))
