"""Eyes: a tower and a projector, which turn a picture's patches into the words that were found for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.eyes.scenes import Scenery
from saegis_lab.polyglot.eyes.streams import Through, teach_through
from saegis_lab.polyglot.eyes.tower import Shelf, patches_of
from saegis_lab.polyglot.eyes.words import Words


@dataclass(frozen=True)
class Fitting:
    """How the projector is fitted to the words. pictures: how many the tower looks at; steps of `batch`
    patches."""

    pictures: int = 3000
    steps: int = 1500
    batch: int = 2048
    rate: float = 4e-3


class Eyes(nn.Module):
    """A seeing model's own two parts, as one module that can be taught."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        # As it is served: what the tower's layers are normed by was counted when it was taught.
        self.tower = cast(nn.Module, model.model.vision_tower).eval()
        self.projector = cast(nn.Module, model.model.multi_modal_projector)
        for name, parameter in self.tower.named_parameters():
            # A tower that is not taught by itself keeps what these give for all pictures.
            parameter.requires_grad_(not name.endswith("attention_biases"))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [b, 3, side, side] from 0 to 1, as the language model gets them: [b, patches, d]."""
        return cast(Tensor, self.projector(patches_of(self.tower, pictures)))


def fit_projector(
    eyes: Eyes, words: Words, shelf: Shelf, scenery: Scenery, fitting: Fitting, seed: int
) -> float:
    """Fit the projector, the tower left as it is, to turn patches into words; returns what is left over, as
    a share of the words' variance."""
    chance = torch.Generator().manual_seed(seed)
    told, wanted = [], []
    with torch.no_grad():
        for _ in range(-(-fitting.pictures // 48)):
            rows, subjects = shelf.drawn(48, chance)
            scenes = shelf.scenes(rows, scenery, chance)
            told.append(patches_of(eyes.tower, scenes.pictures).flatten(0, 1))
            wanted.append(words.tokens(subjects, scenes.cover).flatten(0, 1))
    patches, targets = torch.cat(told), torch.cat(wanted)
    first, last = _linears(eyes.projector)
    with torch.no_grad():
        # Inputs of one size make any tower as easy to fit: the scale goes into the first matrix.
        nn.init.xavier_uniform_(first.weight)
        first.weight /= patches.std(0).clamp_min(1e-3)
        first.bias.copy_(-(first.weight @ patches.mean(0)))
        nn.init.xavier_uniform_(last.weight)
        last.weight *= targets.std()
        last.bias.copy_(targets.mean(0))
    spread = (targets - targets.mean(0)).square().mean()
    optimizer = torch.optim.Adam(eyes.projector.parameters())
    left = 1.0
    for step in range(fitting.steps):
        at = torch.randint(len(patches), (fitting.batch,), generator=chance)
        loss = functional.mse_loss(eyes.projector(patches[at]), targets[at]) / spread
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = fitting.rate * (1.0 - step / fitting.steps)
        optimizer.step()
        left = 0.98 * left + 0.02 * loss.item()
    return left


def _linears(projector: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    parts = cast(Any, projector)
    return parts.linear_1, parts.linear_2


def open_eyes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    eyes: Eyes,
    training: Through,
    shelf: Shelf,
    scenery: Scenery,
    seed: int,
    folder: Path,
) -> None:
    """Teach tower and projector together through the language model, on scenes; see `teach_through`."""

    def draw(subjects: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        scenes = shelf.scenes(shelf.rows_of(subjects, chance), scenery, chance)
        return eyes(scenes.pictures), scenes.cover

    teach_through("eyes", model, tokenizer, training, eyes, draw, seed, folder)
