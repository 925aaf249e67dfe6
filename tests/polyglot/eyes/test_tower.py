"""The tower: its shape, and the drawings of every subject that teach it."""

from typing import Any

import torch
from transformers import LevitConfig

from saegis_lab.polyglot.eyes.emoji import Drawings
from saegis_lab.polyglot.eyes.keeping import share
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.eyes.tower import OTHER, Shelf, new_tower, patches_of
from tests.polyglot.eyes.sets import BESIDE, SMALL


def shelf() -> Shelf:
    names = (*(names[0] for names in ICONS.values()), BESIDE[0])
    pixels = torch.randint(256, (len(names), 4, 16, 16), generator=torch.Generator().manual_seed(0))
    return Shelf.of(Drawings(pixels.to(torch.uint8), ("made",) * len(names), names))


def test_a_drawing_is_of_its_subject_or_of_none() -> None:
    mine = shelf()
    assert mine.subjects.tolist() == [*range(len(ICONS) + 1)]
    assert (mine.names == OTHER).tolist() == [False] * len(ICONS) + [True]
    assert mine.looks.shape == (3, len(mine.names), 4, 16, 16)
    rows, subjects = mine.drawn(200, torch.Generator().manual_seed(1))
    assert torch.equal(mine.subjects[rows], subjects)
    assert len(torch.unique(subjects)) == len(ICONS) + 1


def test_a_tower_tells_of_each_patch_of_a_picture() -> None:
    tower: Any = new_tower(SMALL, 0)
    tower.eval()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = patches_of(tower, pictures)
        assert told.shape == (2, SMALL.patches, SMALL.width)
        torch.testing.assert_close(patches_of(tower, pictures[1:]), told[1:])
    again: Any = LevitConfig.from_dict(tower.config.to_dict())
    assert again.down_ops[0] == [""]
    assert again.hidden_size == SMALL.width


def test_the_rate_goes_up_stays_and_comes_down() -> None:
    shares = [share(step, 100, 10) for step in range(100)]
    assert shares[9] == shares[50] == 1.0
    assert shares[0] == 0.1
    assert 0.0 < shares[99] < 0.05
    assert shares == sorted(shares[:10]) + [1.0] * 50 + sorted(shares[60:], reverse=True)
