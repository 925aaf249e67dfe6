"""Scenes of drawings: by a seed, in bounds, with the cover that the drawing has."""

import torch

from saegis_lab.polyglot.eyes.scenes import Scenery, outlined

GREEN = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
GREEN[:, 1, 4:12, 4:12] = 200
GREEN[:, 3, 4:12, 4:12] = 255
STEADY = Scenery(side=16, patch=8, turn=0.0, least=1.0, most=1.0, recoloured=0.0)


def test_a_seed_makes_the_same_scenes() -> None:
    first, again, other = (
        Scenery(side=16, patch=8).scenes(GREEN, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures, other.pictures)
    assert first.pictures.shape == (3, 3, 16, 16)
    assert first.cover.shape == (3, 4)
    for values in (first.pictures, first.cover):
        assert 0.0 <= float(values.min()) <= float(values.max()) <= 1.0


def test_the_cover_is_that_of_the_drawing() -> None:
    nothing = STEADY.scenes(torch.zeros_like(GREEN), torch.Generator().manual_seed(0))
    whole = torch.full_like(GREEN, 255)
    everything = Scenery(side=16, turn=0.0, least=2.0, most=2.0).scenes(
        whole, torch.Generator().manual_seed(0)
    )
    assert float(nothing.cover.max()) == 0.0
    assert float(everything.cover.min()) == 1.0
    some = STEADY.scenes(GREEN, torch.Generator().manual_seed(0))
    assert 0.15 <= float(some.cover.mean()) <= 0.35


def test_what_is_not_recoloured_keeps_its_colour() -> None:
    pictures = STEADY.scenes(GREEN, torch.Generator().manual_seed(0)).pictures
    middle = pictures[:, :, 8, 8]
    # The noise of a picture is at most a few hundredths.
    torch.testing.assert_close(middle, torch.tensor([0.0, 200 / 255, 0.0]).expand(3, 3), atol=0.12, rtol=0.0)


def test_an_outline_is_dark_and_lies_around_the_drawing() -> None:
    drawn = outlined(GREEN, pale=1.0)
    assert drawn.dtype == torch.uint8
    assert int(drawn[0, :3, 3, 8].max()) < 60
    assert drawn[0, 3, 3, 8] == 255
    assert drawn[0, 3, 0, 0] == 0
    assert int(drawn[0, :3, 8, 8].min()) > 200
