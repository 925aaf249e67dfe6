"""The recipe of the eyes: every size and seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from saegis_lab.polyglot.eyes.eyes import Fitting
from saegis_lab.polyglot.eyes.scenes import Scenery
from saegis_lab.polyglot.eyes.streams import Through
from saegis_lab.polyglot.eyes.tower import TowerShape, TowerTraining


@dataclass(frozen=True)
class EyesRecipe:
    """Every size of the making and the measuring of eyes.

    seed: of all that is drawn by chance. covers: how many scenes tell which patches a drawing covers, for the
    words. others: of how many emoji that are no subject's drawings are kept, at most. scenes: of each drawing
    on which features are ranked. pictures: of each subject that are asked about in each language.
    """

    seed: int = 0
    shape: TowerShape = field(default_factory=TowerShape)
    scenery: Scenery = field(default_factory=Scenery)
    tower: TowerTraining = field(default_factory=TowerTraining)
    words: Through = field(default_factory=lambda: Through(steps=350, batch=8, rate=0.02))
    fitting: Fitting = field(default_factory=Fitting)
    opening: Through = field(default_factory=lambda: Through(steps=400, batch=8, rate=5e-4, patches=2.0))
    covers: int = 400
    others: int | None = 300
    scenes: int = 4
    pictures: int = 4

    @classmethod
    def quick(cls) -> EyesRecipe:
        """A run of some seconds, which sees nothing and shows that the steps fit together."""
        through = Through(steps=2, batch=2, rate=0.01, warmup=1, layer=0, checkpoint_every=1)
        shape = TowerShape(width=16, layers=1, heads=2, keys=8, side=32)
        return cls(
            shape=shape,
            scenery=replace(Scenery(), side=32),
            tower=TowerTraining(steps=3, batch=4, warmup=1, checkpoint_every=2),
            words=through,
            fitting=Fitting(pictures=48, steps=3, batch=16),
            opening=through,
            covers=4,
            others=2,
            scenes=1,
            pictures=1,
        )
