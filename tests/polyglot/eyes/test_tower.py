"""The tower: settled on pictures, and taught by drawings of every subject."""

import torch

from saegis_lab.polyglot.eyes.emoji import Drawings
from saegis_lab.polyglot.eyes.keeping import share
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.eyes.tower import OTHER, Shelf, new_tower, patches_of, settle, waves
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


def test_a_settled_tower_sees_patches_that_are_alike_strong_in_all_directions() -> None:
    tower = new_tower(SMALL, 0)
    pictures = torch.rand(256, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    settle(tower, pictures)
    with torch.no_grad():
        told = tower.embeddings.patch_embedding(pictures * 2.0 - 1.0).flatten(2).transpose(1, 2).flatten(0, 1)
    spread = torch.cov(told.T)
    assert float((spread - torch.diag(spread.diag())).abs().max()) < 0.05
    assert float(spread.diag().max() / spread.diag().min()) < 1.5
    assert patches_of(tower, pictures[:2]).shape == (2, SMALL.patches, SMALL.width)


def test_places_are_told_apart() -> None:
    told = waves(6, 96)
    assert told.shape == (36, 96)
    assert float(torch.pdist(told).min()) > 0.5


def test_the_rate_goes_up_stays_and_comes_down() -> None:
    shares = [share(step, 100, 10) for step in range(100)]
    assert shares[9] == shares[50] == 1.0
    assert shares[0] == 0.1
    assert 0.0 < shares[99] < 0.05
    assert shares == sorted(shares[:10]) + [1.0] * 50 + sorted(shares[60:], reverse=True)
