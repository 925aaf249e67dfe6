"""Clamp files: JSON that names a feature to clamp, the values to try, and the words that it should bring."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from saegis_lab.evaluation.records import Record, read_record

#: The units of a clamp's values: the feature's own, or multiples of its recorded maximum.
ClampUnit = Literal["feature", "max_activation"]
DEFAULT_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DEFAULT_WORDS = "landmark"


@dataclass(frozen=True, slots=True)
class ClampFile(Record):
    """A feature, the values to clamp it to in `unit`, ascending, and the name of its word list.

    sae: the id of its SAE; empty where the server has one. Raises ValueError naming the field that cannot be.
    """

    feature: int
    values: tuple[float, ...] = DEFAULT_VALUES
    unit: ClampUnit = "max_activation"
    words: str = DEFAULT_WORDS
    sae: str = ""

    def __post_init__(self) -> None:
        if self.feature < 0:
            raise ValueError(f"feature: {self.feature} is no index")
        check_values(self.values)

    @classmethod
    def load(cls, path: Path) -> ClampFile:
        """Read a clamp file. Raises EvaluationFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the clamp file; an empty `sae` is left out."""
        entries = {key: value for key, value in asdict(self).items() if key != "sae" or value}
        path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_values(values: tuple[float, ...]) -> None:
    """Raises ValueError unless there are values, all finite, each greater than the one before."""
    if not values:
        raise ValueError("values: there must be at least one")
    if not all(map(math.isfinite, values)):
        raise ValueError("values: must be finite")
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError("values: each must be greater than the one before")
